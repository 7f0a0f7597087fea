"""The report: one HTML page that holds everything about a suite and refers to nothing outside itself.

    write_report("results/quickstart")               # results/quickstart/report.html, and figures/*.png beside it

Text from recipes and runs is escaped by Jinja2; the figures are inline SVG in the reader's light or dark theme.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hf_arch.analysis.budgets import rate_lines
from hf_arch.analysis.columns import filled_columns
from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.comparison import Comparison, Group
from hf_arch.core.errors import ConfigError
from hf_arch.core.files import write_atomic
from hf_arch.core.formats import duration
from hf_arch.report.diagram import diagram
from hf_arch.runs.numbers import Reader
from hf_arch.runs.record import RunRecord, numbers_for

REPORT_FILE = "report.html"
FIGURES_DIR = "figures"
MAX_PAIRS = 60


def write_report(
    results_dir: str | Path,
    output: str | Path | None = None,
    png: bool = True,
    runs: Sequence[str | Path | RunRecord] | None = None,
    comparison: Comparison | None = None,
) -> Path:
    """Writes the page (by default `<results_dir>/report.html`), and PNG figures in `figures/` beside it.

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
    environment.filters["unbroken"] = _unbroken
    return environment.get_template("report.html").render(
        title=title,
        comparison=comparison,
        experiments=_descriptions(comparison.runs),
        violations=sum(finding.severity == "violation" for finding in comparison.findings),
        columns=filled_columns(comparison),
        symbols=[swatch(series) for series in series_of(comparison)],
        index={series.name: series.index for series in series_of(comparison)},
        sections={
            section: [(figure, draw(figure, figures_dir)) for figure in found]
            for section, found in figures(comparison).items()
        },
        pairs=_ranked_pairs(comparison),
        rate_lines=rate_lines(comparison.budgets),
        max_pairs=MAX_PAIRS,
        cards=[_card(comparison, group) for group in comparison.groups if not top or group.name in top],
        runs=sorted(comparison.runs, key=lambda run: (run.name, run.seed or 0, run.path)),
        versions=_versions(comparison.runs),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


@dataclass(frozen=True)
class Card:
    """What one group is: its diagram, components and sizes, and a sample of what it writes."""

    group: Group
    diagram: str
    components: list[tuple[str, str, bool]]  # name, value, whether it differs from the baseline
    sizes: list[tuple[str, str]]
    prompt: str
    sample: str


def _card(comparison: Comparison, group: Group) -> Card:
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
        ],
        sizes=[
            (number.words, number.show(numbers[number.key]))
            for number in numbers_for(Reader.SIZES)
            if number.key in numbers
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


def _unbroken(text: str) -> str:
    """The text with its bracketed intervals kept on one line."""
    return re.sub(r"\[[^\]]*\]", lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


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
