"""The questions of docs/architecture.md are answered by files that exist and define the name that is given."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (?P<question>[^|]+\?) \| `(?P<file>[^`|]+)` \| `(?P<name>\w+)` \|$", re.MULTILINE)


def test_every_question_is_answered_by_one_file():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    section = text.split("## Where is it decided?")[1].split("\n## ")[0]
    rows = [match.groupdict() for match in ROW.finditer(section)]
    lines = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| question")]
    assert len(rows) == len(lines) >= 20
    assert len({row["question"] for row in rows}) == len(rows)
    for row in rows:
        tree = ast.parse((ROOT / "hf_arch" / row["file"]).read_text(encoding="utf-8"))
        assert row["name"] in {getattr(node, "name", None) for node in tree.body}, row
