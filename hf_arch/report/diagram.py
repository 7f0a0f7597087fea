"""A block diagram of one architecture, drawn from its component table: embedding, the repeated block, norm, head.

The table is what `hf_arch.describe` gives and every `results.json` keeps, so a run is drawn without its model.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

WIDTH, BOX_LEFT, BOX_WIDTH = 260, 60, 160
LINE, GAP, PADDING = 13, 9, 5  # of text, between boxes, inside a box
MAX_CHARACTERS = 26
# The order of one residual branch by the position of its norm; "+" takes up the branch.
BRANCHES = {
    "pre": ("norm", "part", "+"),
    "post": ("part", "+", "norm"),
    "sandwich": ("norm", "part", "norm", "+"),
    "output": ("part", "norm", "+"),
    "stream": ("norm", "part", "+"),
}


def diagram(components: Mapping[str, Any]) -> str:
    """The diagram as an <svg> element; empty where the table does not name mixer, FFN and norm."""
    mixer, ffn, norm = (str(components.get(key) or "") for key in ("mixer", "ffn", "norm"))
    if not (mixer and ffn and norm):
        return ""
    norm_name, _, rest = norm.partition(",")
    position = re.sub(r" in .*", "", str(components.get("position", "none")))  # as said of a part of the layers
    absolute = position in ("learned", "sinusoidal")
    turned = [f"({position} positions)"] if "attention" in mixer and not absolute and position != "none" else []
    layers = components.get("layers", "?")
    column = _Column()
    column.box("end", [f"token embedding, width {components.get('width', '?')}"])
    if absolute:
        column.box("end", [f"+ {position} positions"])
    stream = str(components.get("stream") or "add")
    if stream != "add":
        column.box("end", [f"stream: {', '.join(part_names(stream))}"])
    column.open_frame(f"{layers} ×")
    for part, lines in (("mixer", [*part_names(mixer), *turned]), ("ffn", part_names(ffn))):
        if lines == ["none"]:
            continue
        branch = BRANCHES.get(rest.split(",")[0].strip() or "pre", BRANCHES["pre"])
        for step in branch:
            if step == branch[0]:
                column.branch()
            if step == "+":
                column.join()
            elif step == "norm":
                column.box("norm", [norm_name])
            else:
                column.box(part, lines)
    column.close_frame()
    if "pre" in rest or "sandwich" in rest:
        column.box("norm", [norm_name])
    head = "tied head" if components.get("tied head") == "on" else "head"
    column.box("end", [f"{head}, {components.get('vocabulary', '?')} tokens"])
    parts = ", then ".join(" and ".join(part_names(text)) for text in (mixer, ffn) if text != "none")
    between = "" if stream == "add" else f", stream {stream}"
    return column.svg(f"{layers} layers of {parts}, {norm}{between}")


def part_names(text: str) -> list[str]:
    """The names in a component's cell without their options, equal neighbours counted: `gla (expand_k=0.5), attention
    (window=8), attention` is gla, 2 × attention.
    """
    while (shorter := re.sub(r"\s*\([^()]*\)", "", text)) != text:
        text = shorter
    counts: list[tuple[str, int]] = []
    for entry in filter(None, map(str.strip, text.split(","))):
        times, name = re.fullmatch(r"(?:(\d+)x)?(.*)", entry, re.DOTALL).groups()  # type: ignore[union-attr]
        count = int(times or 1)
        if counts and counts[-1][0] == name:
            count += counts.pop()[1]
        counts.append((name, count))
    if len(counts) == 1:
        return [counts[0][0]]
    return [name if count == 1 else f"{count} × {name}" for name, count in counts] or ["?"]


class _Column:
    """Boxes from top to bottom, with the arrow between them, the residual branches and the frame of the block."""

    def __init__(self) -> None:
        self.y = 4.0
        self.shapes: list[str] = []
        self._start = self._frame = 0.0

    def box(self, kind: str, lines: list[str]) -> None:
        height = LINE * len(lines) + 2 * PADDING
        self._arrow()
        self.shapes.append(
            f'<rect class="{kind}" x="{BOX_LEFT}" y="{self.y:g}" width="{BOX_WIDTH}" height="{height}" rx="4"/>'
        )
        for number, line in enumerate(lines):
            shown = line if len(line) <= MAX_CHARACTERS else f"{line[: MAX_CHARACTERS - 1]}…"
            baseline = self.y + PADDING + LINE * (number + 1) - 3
            self.shapes.append(f'<text x="{BOX_LEFT + BOX_WIDTH / 2:g}" y="{baseline:g}">{html.escape(shown)}</text>')
        self.y += height

    def branch(self) -> None:
        """A residual branch leaves here."""
        self._start = self.y + GAP / 2

    def join(self) -> None:
        """The branch comes back and is added."""
        self._arrow()
        middle, radius = BOX_LEFT + BOX_WIDTH / 2, 6
        y = self.y + radius
        self.shapes.append(f'<path d="M{middle} {self._start:g}H{BOX_LEFT - 12}V{y:g}H{middle - radius}"/>')
        self.shapes.append(f'<circle cx="{middle:g}" cy="{y:g}" r="{radius}"/>')
        self.shapes.append(f'<path d="M{middle - 3} {y:g}h6M{middle} {y - 3:g}v6"/>')
        self.y += 2 * radius

    def open_frame(self, label: str) -> None:
        self._arrow()
        self._frame = self.y
        self.shapes.append(f'<text class="times" x="8" y="{self.y + 16:g}">{html.escape(label)}</text>')

    def close_frame(self) -> None:
        self.y += GAP
        size = f'width="{WIDTH - 4}" height="{self.y - self._frame:g}"'
        self.shapes.append(f'<rect class="frame" x="2" y="{self._frame:g}" {size} rx="6"/>')

    def _arrow(self) -> None:
        if self.shapes:
            self.shapes.append(f'<path d="M{BOX_LEFT + BOX_WIDTH / 2:g} {self.y:g}v{GAP}"/>')
            self.y += GAP

    def svg(self, words: str) -> str:
        head = (
            f'<svg class="diagram" viewBox="0 0 {WIDTH} {self.y + 4:g}" role="img" aria-label="{html.escape(words)}">'
        )
        return head + "".join(self.shapes) + "</svg>"
