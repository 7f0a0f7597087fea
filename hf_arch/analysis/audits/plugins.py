"""What plugins bring besides their source: files that they read, packages that they import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from hf_arch.analysis.finding import Finding, Severity
from hf_arch.analysis.question import changed_keys, is_asked
from hf_arch.analysis.resolved import given
from hf_arch.analysis.run_names import by_value, listed, run_labels, run_names, values_by_run
from hf_arch.core.plugin_files import WEIGHTS
from hf_arch.runs.record import RunRecord


def check_plugin_files(runs: Sequence[RunRecord]) -> Finding | None:
    """The same contents of every file that plugins read; and the same files for the same plugins, unless an option of
    theirs is the question."""
    known = [run for run in runs if run.completed and _files(run) is not None]
    if other := _other_contents(known):
        return other
    for group in by_value(known, lambda run: repr(sorted(_of(run, "plugins").items()))).values():
        if found := _other_files(group):
            return found
    if weights := _weights_of_one_side(known):
        return weights
    names = sorted({name for run in known for name in _files(run) or ()})
    if not names:
        return None
    sentence = f"Plugins read {listed(names)}, the same in every run that reads it."
    return Finding("plugin files", "ok", sentence, run_labels(known))


def check_text_read(runs: Sequence[RunRecord]) -> Finding | None:
    """A part that reads the corpus may know what it is scored on, in other ways than by training."""
    reading = {run: run.provenance.get("plugin_text") for run in runs if run.completed}
    readers = [run for run, names in reading.items() if names]
    if not readers:
        return None
    names = listed(sorted({str(name) for run in readers for name in reading[run] or ()}))
    sentence = f"Plugins of {run_names(readers)} read {names}, in which stands what is scored."
    return Finding("seen rows", "violation", sentence, run_labels(readers), {r.label: reading[r] for r in readers})


def check_plugin_packages(runs: Sequence[RunRecord]) -> Finding | None:
    """The same versions of the packages that plugins import, in all runs whose plugins import them."""
    for package, found in _by_entry(runs, "plugin_packages").items():
        if len(found) > 1:
            text = "; ".join(f"{package} {version}: {run_names(group)}" for version, group in found.items())
            sentence = f"A package of a plugin differs: {text}."
            return Finding("versions", "violation", sentence, run_labels(runs), {package: values_by_run(found)})
    return None


def _other_contents(runs: Sequence[RunRecord]) -> Finding | None:
    for name, found in _by_entry(runs, "plugin_files").items():
        if len(found) > 1:
            text = "; ".join(f"{digest[:10]}: {run_names(group)}" for digest, group in found.items())
            severity: Severity = "note" if _names_it(runs, name) else "violation"
            sentence = f"The file {name} that a plugin reads differs between runs: {text}."
            return Finding("plugin files", severity, sentence, run_labels(runs), {name: sorted(found)})
    return None


def _other_files(runs: Sequence[RunRecord]) -> Finding | None:
    """A finding where one plugin reads other files in some of these runs. What it read for an earlier run of the same
    process it may hold still, or not: a note where that explains the difference."""
    read = {run: frozenset(_files(run) or ()) for run in runs}
    sure = {run: read[run] - set(run.provenance.get("plugin_files_earlier") or ()) for run in runs}
    if len(sets := by_value(runs, lambda run: sure[run])) < 2:
        return None
    common = frozenset.intersection(*sure.values())
    text = "; ".join(f"{listed(sorted(names - common)) or 'none'}: {run_names(same)}" for names, same in sets.items())
    if all(one <= other for one in sets for other in read.values()):
        sentence = (
            f"The same plugin reads other files ({text}), or holds what it read for an earlier run of its process."
        )
        return Finding("plugin files", "note", sentence, run_labels(runs))
    severity: Severity = "note" if _asks_a_plugin(runs) else "violation"
    sentence = f"The same plugin reads other files: {text}."
    return Finding("plugin files", severity, sentence, run_labels(runs), {r.label: sorted(read[r]) for r in runs})


def _weights_of_one_side(runs: Sequence[RunRecord]) -> Finding | None:
    """A finding where plugins of some runs read what may have been learned before, and those of others nothing."""
    read = {run: sorted(name for name in _files(run) or () if PurePosixPath(name).suffix in WEIGHTS) for run in runs}
    readers = [run for run in runs if read[run]]
    if not readers or len(readers) == len(runs):
        return None
    names = listed(sorted({name for run in readers for name in read[run]}))
    sentence = (
        f"Plugins of {run_names(readers)} read {names}, which may hold what was learned before; others read none."
    )
    severity: Severity = "note" if is_asked("initialisation", runs) else "violation"
    return Finding("plugin files", severity, sentence, run_labels(readers), {r.label: read[r] for r in runs})


def _by_entry(runs: Sequence[RunRecord], key: str) -> dict[str, dict[str, list[RunRecord]]]:
    """{name: {value: runs}} of a mapping that provenance holds."""
    found: dict[str, dict[str, list[RunRecord]]] = {}
    for run in runs:
        for name, value in _of(run, key).items():
            found.setdefault(name, {}).setdefault(str(value), []).append(run)
    return found


def _of(run: RunRecord, key: str) -> Mapping[str, Any]:
    held = run.provenance.get(key)
    return held if isinstance(held, Mapping) else {}


def _files(run: RunRecord) -> Mapping[str, Any] | None:
    held = run.provenance.get("plugin_files")
    return held if isinstance(held, Mapping) else None


def _names_it(runs: Sequence[RunRecord], name: str) -> bool:
    """Whether recipes give different paths of files of this name: which one is read is then the question."""
    values = [given(run).get(key) for key in changed_keys(runs) for run in runs]
    return any(isinstance(value, str) and PurePosixPath(value).name == PurePosixPath(name).name for value in values)


def _asks_a_plugin(runs: Sequence[RunRecord]) -> bool:
    """Whether recipes differ in an option of something that a plugin of theirs registers, or in whether it is used."""
    parts = {str(part).partition(" ")[2] for run in runs for part in _of(run, "plugin_parts")}
    return any(_type_at(given(run), key) & parts for key in changed_keys(runs) for run in runs)


def _type_at(values: Mapping[str, Any], key: str) -> set[str]:
    """The names that a key lies under: its own value, and the type of each section around it."""
    sections = [key]
    while (above := sections[-1].rpartition(".")[0]) != "":
        sections.append(above)
    found = [values.get(name) for section in sections for name in (section, f"{section}.type")]
    architecture = values.get("model.architecture") if key.startswith("model.") else None
    return {value for value in (*found, architecture) if isinstance(value, str)}
