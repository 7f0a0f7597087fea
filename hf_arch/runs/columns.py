"""A column of one's own in every table of runs, from a plugin file: made of what a run left.

    @COLUMNS.register("tokens_per_parameter")
    class TokensPerParameter(ReportColumn):
        title, show = "tokens/param", ".1f"

        def value(self, record):
            return record.tokens_seen / record.params_total

A recipe names it in `experiment.columns`, whose runs then keep the plugin; `HF_ARCH_PLUGINS` shows it for any runs. It
stands in the table on the terminal, on the page, in the card, in CSV and in `--json`, and changes no run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hf_arch.checkpoints.plugin_copies import chosen_sources
from hf_arch.core.errors import ConfigError
from hf_arch.core.plugins import is_from_environment, load_source, plugin_error, separate_plugins
from hf_arch.core.registry import COLUMNS
from hf_arch.runs.numbers import Number, plugin_number, read_number
from hf_arch.runs.record import RESULT_KEYS, RunRecord


class ReportColumn:
    """Base of every one.

    title: the head of the column (its registered name where empty). show: a format such as `.1f` for numbers.
    help: what it says, with the unit. decimals: the least decimals of mean ± half-width over seeds; None shows the mean
    alone.
    """

    title: ClassVar[str] = ""
    show: ClassVar[str] = ".3g"
    help: ClassVar[str] = ""
    decimals: ClassVar[int | None] = None

    def value(self, record: RunRecord) -> float | str | None:
        """What a completed run has in it: a number, a text that is the same for every seed, or None."""
        raise NotImplementedError(f"{type(self).__name__}.value")


@dataclass(frozen=True)
class FilledColumn:
    """A column over some runs: {run: its number or text}, without the runs that have none."""

    name: str
    number: Number
    decimals: int | None
    values: dict[RunRecord, float | str]

    def numbers(self, runs: Sequence[RunRecord]) -> list[float]:
        """The numbers of these runs."""
        return [value for run in runs if isinstance(value := self.values.get(run), float)]

    def texts(self, runs: Sequence[RunRecord]) -> list[str]:
        """The distinct texts of these runs."""
        return list(dict.fromkeys(value for run in runs if isinstance(value := self.values.get(run), str)))


def plugin_columns(runs: Sequence[RunRecord]) -> list[FilledColumn]:
    """The columns that the recipes of these runs name, and those that `HF_ARCH_PLUGINS` registers.

    Of a run that names one, its own copy of the plugin is taken; where runs keep different versions, that of the run
    written last, which is said.

    Raises `ConfigError` of one line, which names the plugin's line, where a column raises an error or returns anything
    but a number, a text or None.
    """
    columns: dict[str, type[ReportColumn]] = {
        name: column
        for name, column in COLUMNS.items()
        if (plugin := COLUMNS.owner(name)) is None or is_from_environment(plugin)
    }
    named = {name for run in runs for name in run.experiment.get("columns") or ()}
    naming = [run for run in runs if run.experiment.get("columns")]
    versions: dict[str, set[str]] = {}
    for run in sorted(naming, key=lambda run: run.modified):
        with separate_plugins():
            for source in chosen_sources(run.path):
                load_source(source)
            for name in run.experiment["columns"]:
                if name in COLUMNS:
                    columns[name] = COLUMNS[name]
                    owner = COLUMNS.owner(name)
                    versions.setdefault(name, set()).add("" if owner is None else owner.source.digest)
    if missing := sorted(named - set(columns)):
        raise ConfigError(f"experiment.columns: {missing[0]!r} is not known; its plugin is not in the run's folder")
    for name, found in versions.items():
        if len(found) > 1:
            logging.getLogger("hf_arch").warning(
                "column %s: the runs keep %d versions of it; that of the newest run is shown", name, len(found)
            )
    return [filled_column(name, columns[name](), runs) for name in sorted(columns)]


def filled_column(name: str, column: ReportColumn, runs: Sequence[RunRecord]) -> FilledColumn:
    """What one column says of these runs. Raises `ConfigError` as `plugin_columns` does."""
    values: dict[RunRecord, float | str] = {}
    try:
        facts = plugin_number(column.title or name, "", column.show, column.title or name, column.help)
    except ConfigError as error:
        raise ConfigError(f"column {name!r}: {error}") from error
    if name in RESULT_KEYS:
        raise ConfigError(f"column {name!r}: a key of results.json is called so; rename it")
    for run in runs:
        if not run.completed:
            continue
        try:
            value: Any = column.value(run)
        except Exception as error:  # whatever the user's code raises
            raise ConfigError(f"column {name!r}: {run.label}: {plugin_error(error)}") from error
        if isinstance(value, bool) or not (value is None or isinstance(value, (int, float, str))):
            raise ConfigError(
                f"column {name!r}: {run.label}: value returned {type(value).__name__}; expected number, text or None"
            )
        if isinstance(value, (int, float)):
            value = float(value) if math.isfinite(value) else None
        if value is not None:
            values[run] = value
    return FilledColumn(name, read_number(name, facts), column.decimals, values)
