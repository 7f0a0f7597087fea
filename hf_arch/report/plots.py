"""Figures, drawn once by matplotlib: as PNG files, and as inline SVG that follows the page's theme.

Colours are Okabe and Ito's, and each series also has its own marker and dash: no figure needs colour to be read.
In the SVG each colour becomes a CSS variable (`--s0`, `--ink`, `--grid`), which the page sets for light and dark.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure as Canvas

from hf_arch.report.axes import wrapped_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hf_arch.analysis.comparison import Comparison

OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a800")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (8, 3)),
    (0, (3, 1.5, 1.5, 1.5, 1.5, 1.5)),
)
INK, GRID = "#1b1f24", "#d9dde2"
PNG_DPI = 160
SIZE = (4.0, 2.8)  # inches: 288 x 202 points, so that 9-point text stays legible in a 340-pixel column

RC = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Figure:
    """One figure: `draw` puts it on an axes, `note` stands below it, `alt` says what it shows to who cannot see it."""

    key: str
    title: str
    note: str
    alt: str
    draw: Callable[[Axes], None]
    height: float = SIZE[1]
    legend: bool = True


@dataclass(frozen=True)
class Series:
    """How one group looks everywhere."""

    index: int
    name: str

    @property
    def color(self) -> str:
        """Okabe-Ito colour, as hexadecimal."""
        return OKABE_ITO[self.index % len(OKABE_ITO)]

    @property
    def marker(self) -> str:
        """Matplotlib marker."""
        return MARKERS[self.index % len(MARKERS)]

    @property
    def dash(self) -> Any:
        """Matplotlib line style."""
        return DASHES[self.index % len(DASHES)]

    def gid(self, text: str = "") -> str:
        """An id that `to_svg` turns into a class and a title; hexadecimal, because names may hold any character."""
        return f"series-{self.index}-{(text or self.name).encode().hex()}"


def series_of(comparison: Comparison) -> list[Series]:
    """One look a group, in the order of the table."""
    return [Series(index, group.name) for index, group in enumerate(comparison.groups)]


def draw(figure: Figure, png_folder: Path | None = None) -> str:
    """Draws the figure once: returned as an <svg> element, and with `png_folder` written there as `<key>.png`.

    The SVG has no outside reference, text as text, colours as CSS variables and unique ids; the PNG is on white, with
    title and legend.
    """
    with matplotlib.rc_context({**RC, "svg.hashsalt": figure.key}):
        canvas, axes = _canvas(figure)
        label = html.escape(f"{figure.title}. {figure.alt}", quote=True)
        svg = _titled(_inline_svg(canvas, figure.key, f'role="img" aria-label="{label}"'), figure.key)
        if png_folder is not None:
            _save_png(canvas, axes, figure, png_folder / f"{figure.key}.png")
    return svg


def write_png(figure: Figure, path: Path) -> None:
    """The figure as a PNG file alone."""
    with matplotlib.rc_context(RC):
        _save_png(*_canvas(figure), figure, path)


def write_vector(figure: Figure, folder: Path) -> None:
    """The figure as `<key>.svg` and `<key>.pdf`, on white with its legend and without its title: for a caption."""
    folder.mkdir(parents=True, exist_ok=True)
    fonts = {"svg.fonttype": "path", "pdf.fonttype": 42, "svg.hashsalt": figure.key}
    with matplotlib.rc_context({**RC, **fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name's; the caption and the table have it
        canvas, axes = _canvas(figure)
        _add_legend(axes, figure)
        canvas.savefig(folder / f"{figure.key}.pdf", facecolor="white", metadata={"CreationDate": None})
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    svg = re.sub(r"<!--.*?-->\s*", "", buffer.getvalue(), flags=re.DOTALL)  # labels, which may hold any character
    (folder / f"{figure.key}.svg").write_text(svg, encoding="utf-8")


def _add_legend(axes: Axes, figure: Figure) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if figure.legend and handles:
        axes.legend(handles, wrapped_names(labels), frameon=False, fontsize=8)


def _save_png(canvas: Canvas, axes: Axes, figure: Figure, path: Path) -> None:
    axes.set_title(figure.title, loc="left", fontweight="bold")
    _add_legend(axes, figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, format="png", dpi=PNG_DPI, facecolor="white")


def swatch(series: Series) -> str:
    """A <symbol> with a series' line and marker, for the page's legend to <use>."""
    with matplotlib.rc_context({**RC, "svg.hashsalt": "swatch"}):
        canvas = Canvas(figsize=(0.5, 0.2))
        canvas.set_layout_engine("none")
        axes = canvas.add_axes((0, 0, 1, 1))
        axes.axis("off")
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.plot([0.04, 0.96], [0.5, 0.5], color=series.color, linestyle=series.dash)
        axes.plot([0.5], [0.5], color=series.color, marker=series.marker)
        svg = _inline_svg(canvas, f"s{series.index}", f'id="swatch-{series.index}"')
        return f"<symbol{svg.strip().removeprefix('<svg').removesuffix('</svg>')}</symbol>"


def _inline_svg(canvas: Canvas, prefix: str, attributes: str) -> str:
    """Matplotlib's SVG made fit for a page that holds several: see `to_svg`."""
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="(?!series-)([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)  # the page's own fonts
    for index, color in enumerate(OKABE_ITO):
        svg = svg.replace(color, f"var(--s{index})")
    svg = svg.replace(INK, "var(--ink)").replace(GRID, "var(--grid)")
    view_box = re.search(r'viewBox="[^"]+"', svg)
    assert view_box is not None
    return f"<svg {view_box[0]} {attributes}>{svg[svg.index('>') + 1 :]}"


def _canvas(figure: Figure) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(SIZE[0], figure.height), layout="constrained")
    axes = canvas.add_subplot()
    figure.draw(axes)
    return canvas, axes


def _titled(svg: str, key: str) -> str:
    """Gives the groups that `Series.gid` marked a class to style and a <title> to hover."""

    def element(match: re.Match[str]) -> str:
        index, name = match[1], html.escape(bytes.fromhex(match[2]).decode())
        return f'<g class="series s{index}"><title>{name}</title>'

    return re.sub(rf'<g id="{re.escape(key)}-series-(\d+)-([0-9a-f]*)">', element, svg)
