"""The documents' code is run as written: every bash and python block, in order, in one temporary folder a document.

A block is left out only by a comment on the line above it that gives the reason: `<!-- not run: an install -->`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DOCUMENTS = [
    "README.md",
    "docs/getting_started.md",
    "docs/first_comparison.md",
    "docs/first_gpu_run.md",
    "docs/how_to.md",
    "docs/pretraining.md",
    "docs/p_values.md",
    "docs/usage.md",
    "docs/new_mixer.md",
    "docs/attention.md",
    "docs/coming_from.md",
    "docs/experiments.md",
    "docs/training.md",
    "docs/evaluation.md",
    "docs/sharing.md",
]
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+?) -->\n)?^```(?P<language>bash|python)\n(?P<code>.*?)^```$", re.M | re.S
)


class Block(NamedTuple):
    line: int
    language: str
    code: str
    reason: str | None  # why it is not run


def blocks(text: str) -> list[Block]:
    return [
        Block(text.count("\n", 0, match.start("language")) + 1, match["language"], match["code"], match["reason"])
        for match in FENCE.finditer(text)
    ]


def test_blocks_are_found_with_their_reasons():
    text = "a\n```bash\nls\n```\n<!-- not run: slow -->\n```python\nx = 1\ny = 2\n```\n```text\nno\n```\n"
    assert blocks(text) == [Block(2, "bash", "ls\n", None), Block(6, "python", "x = 1\ny = 2\n", "slow")]


@pytest.mark.slow
@pytest.mark.skipif(not (BIN / "hf-arch").exists(), reason="the package is not installed in this environment")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_runs_as_written(document: str, tmp_path: Path):
    for folder in ("recipes", "scripts", "tools"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    to_run = [block for block in blocks((ROOT / document).read_text()) if block.reason is None]
    assert to_run
    for block in to_run:
        shell = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
        done = subprocess.run([*shell, block.code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, f"{document}:{block.line} exits {done.returncode}\n{done.stdout}\n{done.stderr}"
