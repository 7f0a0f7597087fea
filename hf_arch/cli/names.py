"""The architectures of the package as `hf-arch list` shows them, read from their files: importing all of them takes
torch, transformers and seconds, for three literals each."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import hf_arch
from hf_arch import environment
from hf_arch.core.recipes import recipe_names, recipes_folder
from hf_arch.deferred import ARCHITECTURES, NO_ARCHITECTURES


def architecture_rows() -> list[dict[str, str]]:
    """Name, summary and paper of every architecture, those of the environment's plugins among them."""
    if not environment.read("HF_ARCH_PLUGINS"):
        return declared_architectures()
    from hf_arch.core import registry

    names = hf_arch.list_architectures()
    entries = {name: registry.ARCHITECTURES.get(name) for name in names}
    return [{"name": name, "summary": entry.summary, "paper": entry.paper} for name, entry in entries.items()]


def declared_architectures() -> list[dict[str, str]]:
    """Name, summary and paper of every architecture, in the order of their names.

    Raises:
        ValueError: a declaration whose name, summary or paper is no literal.
    """
    folder = Path(hf_arch.__file__).parent.joinpath(*ARCHITECTURES.split("."))
    files = [file for file in sorted(folder.glob("*.py")) if file.stem not in (*NO_ARCHITECTURES, "__init__")]
    found = [row for file in files for row in _declared_in(file)]
    return sorted(found, key=lambda row: row["name"])


def _declared_in(file: Path) -> list[dict[str, str]]:
    rows = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "architecture":
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            values = (node.args[0], given["summary"], given["paper"])
            rows.append(dict(zip(("name", "summary", "paper"), map(ast.literal_eval, values), strict=True)))
    return rows


def recipe_rows() -> list[dict[str, str]]:
    """Name and question (the first line) of every recipe that comes with the package."""
    folder = recipes_folder()
    return [{"name": name, "question": _headline(folder / f"{name}.yaml")} for name in recipe_names()]


def _headline(path: Path) -> str:
    """The first line of a recipe's comment, without `Question:`."""
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.lstrip("# ").removeprefix("Question:").strip()


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """The rows as one table, a column a key."""
    table = Table(box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column, overflow="fold", no_wrap=column in ("kind", "name"))
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return str(value)
