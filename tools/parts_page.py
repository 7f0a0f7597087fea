"""The page on parts beyond the mixer, made from the registries: `python -m tools.parts_page > docs/parts.md`.

What each registry holds, with options and defaults, comes from the code; what is said of a point as a whole stands in
`parts_page.md`.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import hf_arch
from hf_arch.core import registry
from hf_arch.core.registry import Registry

PROSE = Path(__file__).with_suffix(".md")
POINTS: dict[str, tuple[Registry[Any], str, str]] = {
    "Streams": (registry.STREAMS, "stream", "how sublayers read from and write to what flows through depth"),
    "Sites": (
        registry.SITES,
        "sites",
        "a small module at `block_input`, `mixer_input`, `qkv`, `ffn_input` or `ffn_hidden`",
    ),
    "Embeddings": (registry.EMBEDDINGS, "embeddings", "what token ids give besides the token embedding"),
    "Depth": (registry.DEPTHS, "depth", "which layers run how often"),
    "Losses": (registry.LOSSES, "losses", "what training adds to the next-token loss"),
    "muP and CompleteP": (registry.PARAMETRIZATIONS, "parametrization", "what changes with width and depth"),
    "Feed-forwards": (registry.FFNS, "ffn", "what works on each token by itself"),
    "Positions": (registry.POSITIONS, "position", "how layers know where a token stands"),
    "Norms": (registry.NORMS, "norm", "what keeps activations at one scale"),
}
"""Heading -> its registry, the field of a config, and what it says."""


def page() -> str:
    """The whole page as Markdown: the prose of `parts_page.md` with the tables in it."""
    hf_arch.list_architectures()
    rows = [
        f"| [{title}](#{title.lower().replace(' ', '-')}) | `{field}` | {says} | {', '.join(_names(table))} |"
        for title, (table, field, says) in POINTS.items()
    ]
    head = ["| point | field of a config | says | ships with |", "|---|---|---|---|"]
    text = PROSE.read_text(encoding="utf-8").replace("@overview", "\n".join([*head, *rows]))
    for table, field, _ in POINTS.values():
        text = text.replace(f"@table {field}\n", f"{_table(table, field)}\n")
    return text


def _names(table: Registry[Any]) -> list[str]:
    return [name for name, entry in table.items() if entry.__module__.startswith("hf_arch.")]


def _table(table: Registry[Any], field: str) -> str:
    rows = [_row(name, table[name]) for name in _names(table)]
    return "\n".join([f"| `{field}` | what it does | options |", "|---|---|---|", *rows])


def _row(name: str, entry: Any) -> str:
    kind = getattr(entry, "Options", None)
    options = ", ".join(f"`{field.name}={_plain(field.default)}`" for field in dataclasses.fields(kind)) if kind else ""
    return f"| `{name}` | {_first_sentence(entry)} | {options or 'none'} |"


def _plain(value: Any) -> str:
    return "..." if value is dataclasses.MISSING else repr(value)


def _first_sentence(entry: Any) -> str:
    text = (inspect.getdoc(entry) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
