"""Which keys of their recipes runs differ in, of those that a check is about."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_arch.analysis.question import ABOUT, differs, flat_config
from hf_arch.analysis.resolved import configuration, setting
from hf_arch.analysis.run_names import by_value, run_names
from hf_arch.runs.record import RunRecord

WHATEVER_SETS_THEM = ("losses", "dropout", "precision", "embedding scale")
"""Checks that look also at what an architecture has by default, where its recipe says nothing."""
DIGITS = 6


def about(check: str, run: RunRecord) -> dict[str, Any]:
    """{dotted key: value} of what the recipe of a run gives of the keys that `check` is about."""
    whole = configuration(run) if check in WHATEVER_SETS_THEM else {}
    return {key: value for key, value in {**whole, **flat_config(run)}.items() if re.fullmatch(ABOUT[check], key)}


def settings_of(check: str, runs: Sequence[RunRecord]) -> dict[RunRecord, dict[str, Any]]:
    """`about` of every run whose recipe is known."""
    return {run: about(check, run) for run in runs if run.config}


def differing(settings: Mapping[RunRecord, Mapping[str, Any]]) -> str:
    """The keys in which runs differ with their values, in words; empty where there are none."""
    keys = sorted({key for flat in settings.values() for key in flat})
    return ", ".join(with_values(settings, [key for key in keys if differs(settings, key)]))


def values_apart(settings: Mapping[RunRecord, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{key: {label of a run: value}} of the keys in which runs differ."""
    keys = sorted({key for flat in settings.values() for key in flat})
    return {
        key: {run.label: _value(run, said, key) for run, said in settings.items()}
        for key in keys
        if differs(settings, key)
    }


def with_values(settings: Mapping[RunRecord, Mapping[str, Any]], keys: Iterable[str]) -> list[str]:
    """`key (value: its runs; ...)` of each key: as `settings` of a run say it, else what it came to."""
    found = []
    for key in keys:
        values = by_value(settings, lambda run, key=key: as_in_a_recipe(_value(run, settings[run], key)))  # type: ignore[misc]
        short = [_short(value) for value in values]
        shown = short if len(set(short)) == len(values) else list(values)
        said = "; ".join(f"{value}: {run_names(group)}" for value, group in zip(shown, values.values(), strict=True))
        found.append(f"{key} ({said})")
    return found


def _short(written: str) -> str:
    """A number of many digits with six of them."""
    if len(written) <= DIGITS + 2:
        return written
    try:
        number = json.loads(written)
    except ValueError:
        return written
    return f"{number:.{DIGITS}g}" if isinstance(number, float) else written


def as_in_a_recipe(value: Any) -> str:
    """A value as YAML spells it on one line: strings in quotes where they would read as something else."""
    written = json.dumps(value, default=str, ensure_ascii=False)
    if not isinstance(value, str) or not value:
        return written
    try:
        json.loads(value)
    except ValueError:
        return value
    return written


def _value(run: RunRecord, said: Mapping[str, Any], key: str) -> Any:
    """A key as the recipe writes it, else what it came to."""
    return said[key] if key in said else setting(run, key)
