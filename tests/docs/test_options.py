"""Every option of the commands for trained models stands in their documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from hf_arch.cli import app

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "evaluation.md": ("eval", "generate", "bench"),
    "sharing.md": ("push", "export", "convert", "quantize"),
}


@pytest.mark.parametrize(("page", "command"), [(page, name) for page, names in PAGES.items() for name in names])
def test_every_option_is_shown_in_a_command(page: str, command: str) -> None:
    lines = re.findall(rf"^hf-arch {command} .*$", (DOCS / page).read_text(), re.M)
    shown = set(re.findall(r"--[a-z-]+", " ".join(lines)))
    parameters = typer.main.get_command(app).commands[command].params
    # One name of each; `--output` may stand for `--output-json`.
    known = {parameter.opts[0] for parameter in parameters if parameter.opts[0].startswith("--")}
    assert shown == known - {"--help"}
