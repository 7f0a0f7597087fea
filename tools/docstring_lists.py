"""For the site only: lines `name: text` of a docstring's plain paragraph become a list, as they read in the source."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ENTRY = re.compile(r"(?![A-Z]\w+:$)([\w*`][\w*`, ]{0,60}?): +(?=\S)")


def as_list(text: str) -> str:
    """The docstring with each paragraph that begins with an entry, and has two or more, as a list.

    Sections of Google's style (`Args:`) are indented, so they stay as they are.
    """
    return "\n\n".join(_paragraph(block) for block in text.split("\n\n"))


def _paragraph(block: str) -> str:
    lines = block.split("\n")
    entries = [_ENTRY.match(line) for line in lines]
    if entries[0] is None or sum(entry is not None for entry in entries) < 2:
        return block
    listed = [
        f"- `{entry[1].strip('`')}`: {line[entry.end() :]}" if entry is not None else f"    {line.strip()}"
        for line, entry in zip(lines, entries, strict=True)
    ]
    return "\n".join(listed)


class DocstringLists(griffe.Extension):
    """Applies `as_list` to every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_list(obj.docstring.value)
