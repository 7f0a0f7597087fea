"""The report: one HTML page that holds everything about a suite and refers to nothing outside itself.

    write_report("results/quickstart")               # results/quickstart/report.html, and figures/*.png next to it

Text from recipes and runs is escaped by Jinja2; the figures are inline SVG in the reader's light or dark theme.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from hf_arch.analysis.budgets import pair_lines, rate_lines
from hf_arch.analysis.columns import filled_columns
from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.comparison import Comparison
from hf_arch.analysis.groups import Group
from hf_arch.core.errors import ConfigError
from hf_arch.core.files import write_atomic
from hf_arch.core.formats import duration
from hf_arch.report.diagram import diagram
from hf_arch.report.methods import methods
from hf_arch.runs.numbers import Number, Reader
from hf_arch.runs.record import RunRecord, numbers_for

if TYPE_CHECKING:
    from hf_arch.report.plots import Figure

REPORT_FILE = "report.html"
FIGURES_DIR = "figures"
MAX_PAIRS = 60
MOST_ROWS_BESIDE = 16


def write_report(
    results_dir: str | Path,
    output: str | Path | None = None,
    png: bool = True,
    runs: Sequence[str | Path | RunRecord] | None = None,
    comparison: Comparison | None = None,
) -> Path:
    """Writes the page (by default `<results_dir>/report.html`), and PNG figures in `figures/` next to it.

    It is about all runs in the folder, or about `runs` alone, or shows a `comparison` that was made already.

    Returns the path of the page. Raises ConfigError where the folder is missing or holds no run.
    """
    path = Path(results_dir) / REPORT_FILE if output is None else Path(output)
    if path.is_dir():
        raise ConfigError(f"output: {path} is a folder; give the name of a file, e.g. {path / REPORT_FILE}")
    if comparison is None:
        comparison = compare_runs(results_dir if runs is None else runs)
    write_atomic(path, render(comparison, Path(results_dir).resolve().name, path.parent / FIGURES_DIR if png else None))
    return path


def render(comparison: Comparison, title: str, figures_dir: Path | None = None) -> str:
    """The page as text; each figure is drawn once, for the page and as PNG into `figures_dir`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from hf_arch.report.figures import figures
    from hf_arch.report.plots import draw, series_of, swatch

    environment = Environment(
        loader=PackageLoader("hf_arch.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    top = () if comparison.ladder is None else comparison.ladder.top
    environment.filters["duration"] = duration
    environment.filters |= {"unbroken": _unbroken, "name": _name}
    sections = {
        section: [(figure, draw(figure, figures_dir)) for figure in found]
        for section, found in figures(comparison).items()
    }
    carded = [group for group in comparison.groups if not top or group.name in top]
    same = _same(carded)
    return environment.get_template("report.html").render(
        title=title,
        comparison=comparison,
        experiments=_descriptions(comparison.runs),
        violations=sum(finding.severity == "violation" for finding in comparison.findings),
        columns=filled_columns(comparison),
        symbols=[swatch(series) for series in series_of(comparison)],
        index={series.name: series.index for series in series_of(comparison)},
        opening=_opening(sections, len(comparison.groups)),
        sections=sections,
        pairs=_ranked_pairs(comparison),
        pair_lines=pair_lines(comparison.budgets[:MAX_PAIRS]),
        rate_lines=rate_lines(comparison.budgets),
        max_pairs=MAX_PAIRS,
        cards=[_card(comparison, group, same) for group in carded],
        same=same,
        runs=sorted(comparison.runs, key=lambda run: (run.name, run.seed or 0, run.path)),
        methods=methods(comparison),
        versions=_versions(comparison.runs),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


@dataclass(frozen=True)
class Card:
    """What one group is: its diagram, the sizes and components in which the groups differ, and a sample of what it
    writes."""

    group: Group
    diagram: str
    components: list[tuple[str, str, bool]]  # name, value, whether it differs from the baseline
    sizes: list[tuple[str, str]]
    prompt: str
    sample: str


def _opening(sections: dict[str, list[tuple[Figure, str]]], rows: int) -> tuple[Figure, str] | None:
    """The figure next to the answer, taken out of its section: the differences, else the means, else the first one.
    None where all are in their sections: a row for each of `rows` runs would be taller than a screen."""
    if rows > MOST_ROWS_BESIDE:
        return None
    places = [(section, entry) for section, found in sections.items() for entry in found]
    for key in ("differences", "means", *(entry[0].key for _section, entry in places[:1])):
        for section, entry in places:
            if entry[0].key == key:
                sections[section].remove(entry)
                if not sections[section]:
                    del sections[section]
                return entry
    return None


def _same(groups: Sequence[Group]) -> dict[str, str]:
    """{size or component: value} that all groups have in common, with how it is written; {} for a single group."""
    facts = [_facts(group) for group in groups if group.reference.components]
    if len(facts) < 2:
        return {}
    return {key: value for key, value in facts[0].items() if all(other.get(key) == value for other in facts)}


def _facts(group: Group) -> dict[str, str]:
    """{name: value in words} of a group's sizes and components."""
    numbers = group.reference.numbers
    sizes = {number.words: number.show(numbers[number.key]) for number in _sizes(group)}
    return {**sizes, **{str(key): _plain(value) for key, value in group.reference.components.items()}}


def _sizes(group: Group) -> list[Number]:
    return [number for number in numbers_for(Reader.SIZES) if number.key in group.reference.numbers]


def _card(comparison: Comparison, group: Group, same: dict[str, str]) -> Card:
    baseline = comparison.group(comparison.baseline).reference.components if comparison.baseline else {}
    numbers = group.reference.numbers
    sample = group.reference.sample or ""
    return Card(
        group=group,
        diagram=diagram(group.reference.components),
        components=[
            (
                str(key),
                _plain(value),
                bool(baseline) and group.name != comparison.baseline and baseline.get(key) != value,
            )
            for key, value in group.reference.components.items()
            if str(key) not in same
        ],
        sizes=[
            (number.words, number.show(numbers[number.key])) for number in _sizes(group) if number.words not in same
        ],
        prompt=str(sample.get("prompt", "")).lstrip() if isinstance(sample, dict) else "",
        sample=str(sample.get("text", "") if isinstance(sample, dict) else sample).rstrip(),
    )


def _plain(value: Any) -> str:
    """A component's value in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    return str(value).replace("=", " ")  # options read, and wrap, as words


def _name(text: str) -> Markup:
    """A name that may be wrapped after - _ . / = : and, unless it must, nowhere else."""
    return Markup("<wbr>").join(re.findall(r"[^-_./=:+]*[-_./=:+]?", text)[:-1])


def _unbroken(text: str) -> str:
    """The text with its bracketed intervals, and a mean with its half-width, each kept on one line."""
    return re.sub(r"\[[^\]]*\]| ± ", lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


def _ranked_pairs(comparison: Comparison) -> list[Any]:
    names = [group.name for group in comparison.groups if group.counted]
    ranked = [comparison.pair(first, second) for i, first in enumerate(names) for second in names[i + 1 :]]
    return [pair for pair in ranked if pair is not None]


def _descriptions(runs: Iterable[RunRecord]) -> list[str]:
    """The distinct descriptions of the recipes."""
    found = (str(run.experiment.get("description") or "").strip() for run in runs)
    return [text for text in dict.fromkeys(found) if text]


def _versions(runs: Iterable[RunRecord]) -> dict[str, str]:
    """{package: the versions that were used}."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        versions = run.provenance.get("versions")
        for package, version in versions.items() if isinstance(versions, dict) else ():
            found.setdefault(str(package), {})[str(version)] = None
    return {package: ", ".join(versions) for package, versions in found.items()}
