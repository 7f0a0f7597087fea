"""The README names what is registered, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path

import hf_arch

README = Path(__file__).parents[2] / "README.md"


def test_the_table_lists_every_architecture():
    table = README.read_text().split("## Architectures")[1].split("\n\n")[1]
    names = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(names) == hf_arch.list_architectures()
