"""What was run, to be read and run again: the recipe of every model, and the plugins that the runs kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from hf_arch.core.files import to_jsonable

if TYPE_CHECKING:
    from hf_arch.analysis.comparison import Comparison
    from hf_arch.runs.record import RunRecord

SECTIONS = ("model", "data", "probe", "training", "evaluation", "experiment")
MISSING_KEY = "(not set)"


def recipe_text(run: RunRecord) -> str:
    """The recipe that trained a run, as YAML: every section as it was resolved, its seed included."""
    sections = {key: to_jsonable(run.config[key]) for key in SECTIONS if run.config.get(key)}
    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, width=100)


def recipe_differences(run: RunRecord, other: RunRecord) -> list[tuple[str, str, str]]:
    """(dotted key, value of `run`, value of `other`) wherever the recipes differ, names and seeds apart."""
    own, others = _flat(run), _flat(other)
    return [
        (key, str(own.get(key, MISSING_KEY)), str(others.get(key, MISSING_KEY)))
        for key in dict.fromkeys([*own, *others])
        if own.get(key, MISSING_KEY) != others.get(key, MISSING_KEY) and not key.startswith("experiment.")
    ]


def _flat(run: RunRecord) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def visit(prefix: str, node: Any) -> None:
        if isinstance(node, Mapping) and node:
            for key, value in node.items():
                visit(f"{prefix}.{key}", value)
        elif prefix not in ("training.seed", "training.data_seed"):
            flat[prefix] = node

    for section in SECTIONS:
        visit(section, run.config.get(section) or {})
    return flat


def plugin_files(comparison: Comparison) -> dict[str, str]:
    """{name: text} of the plugin files that the runs keep in their folders, each content once."""
    found: dict[str, str] = {}
    for run in comparison.runs:
        for copy, facts in dict(run.experiment.get("plugins") or {}).items():
            folder = (run.path / str(copy)).parent
            for name in dict((facts or {}).get("sha256") or {}):
                file = folder / str(name)
                if not file.is_file():
                    continue
                text = file.read_text(encoding="utf-8", errors="backslashreplace")
                if text not in found.values():
                    found[_free(str(name), found)] = text
    return found


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """`name`, or with a number before its ending where it is taken by other contents."""
    stem, dot, ending = name.rpartition(".")
    candidates = [name, *(f"{stem or ending}-{i}{dot}{ending if stem else ''}" for i in range(2, len(taken) + 3))]
    return next(candidate for candidate in candidates if candidate not in taken)


def file_name(text: str) -> str:
    """`text` as the name of a file that every system and LaTeX take."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", text).strip("-")[:60] or "run"
