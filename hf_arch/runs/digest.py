"""A digest of what a run recorded, so that a number that is changed afterwards by hand is noticed.

`results.json` has it under `digest`, a hash for each of its keys (and for the rows of `metrics.jsonl`, once the run is
complete, and for each key of `experiment_config.json` but for notes), `evaluation.json` one for each task, and for its
items. Every writer of these files goes through `sealed`: what it computed is hashed anew, what it took over from the
file keeps its hash, so that an edit is not made good by a later write. `run.digests` of `experiment_config.json` says
that the run writes them: where it stands there and the digest is gone, somebody took it out.

It catches accidents and careless edits. It is no signature: who edits a number can write the hash of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_arch.core.files import read_json, to_jsonable
from hf_arch.recipe.recipe import RUN_FACTS, SECTIONS
from hf_arch.runs.files import CONFIG_FILE, EVALUATION_FILE, METRICS_FILE, RESULTS_FILE, read_metrics
from hf_arch.runs.items import item_tasks, items_file

DIGEST = "digest"
ITEMS_DIGEST = "items_digest"
DIGESTS = "digests"
"""In `run` of experiment_config.json: which version of digests the run writes."""
VERSION = 1
EDITED = "edited"
"""In `run` of experiment_config.json: what of it had been changed by hand when the run was extended."""
LENGTH = 12
NOTES = frozenset(("description", "note", "notes", "comment", "comments", "tags"))
"""Keys that are the user's own to write to, in every file and section: nothing is decided by them."""
FILES = (METRICS_FILE, CONFIG_FILE)
"""Entries of a digest that are of other files."""


def digest_of(value: object) -> str:
    """A hash of a value that JSON can hold; the same for 1 and 1.0, which other programs write for each other."""
    return hashlib.sha256(json.dumps(_plain(to_jsonable(value)), sort_keys=True).encode()).hexdigest()[:LENGTH]


def sealed(values: Mapping[str, Any], before: Mapping[str, Any], digest: Mapping[str, Any]) -> dict[str, str]:
    """The digest of `values`, written over a file with the values `before` and their `digest`. A value that was changed
    there by hand and is written again keeps the hash that it does not fit."""
    found = _hashes(values)
    edited = [key for key in changed_keys(before, digest) if key in found and found[key] == digest_of(before.get(key))]
    return found | {key: str(digest.get(key, "")) for key in edited}


def changed_keys(values: Mapping[str, Any], digest: Mapping[str, Any]) -> list[str]:
    """The keys whose value is not what `digest` says: another, gone, or not there when it was made; [] without one."""
    if not digest:
        return []
    own = _hashes(values)
    return sorted(key for key in own.keys() | (digest.keys() - {*FILES}) if own.get(key) != digest.get(key))


def seal_results(folder: Path, values: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What results.json of `folder` becomes by these values, with their digest, and with that of the `config` that the
    run wrote into experiment_config.json; without it the one from before stays."""
    before = _read(folder / RESULTS_FILE)
    digest: dict[str, Any] = {**sealed(values, before, _digest(before))}
    of_config = _digest(before).get(CONFIG_FILE) if config is None else _hashes(config_values(config))
    if of_config is not None:
        digest[CONFIG_FILE] = of_config
    if values.get("status") == "completed":
        digest[METRICS_FILE] = digest_of(read_metrics(folder / METRICS_FILE))
    return {**{key: value for key, value in values.items() if key != DIGEST}, DIGEST: digest}


def config_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of experiment_config.json is read, by `section.key`: without notes, and without the name of the set, in
    whose place that of the results stands."""
    found: dict[str, Any] = {}
    for section in (*SECTIONS, RUN_FACTS):
        values = config.get(section)
        if isinstance(values, Mapping):
            kept = {key: value for key, value in values.items() if key not in NOTES}
            found |= {f"{section}.{key}": value for key, value in kept.items()}
        elif values is not None:
            found[section] = values
    found.pop("experiment.name", None)
    return found


def edited_config(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """The keys of experiment_config.json that are not as the run wrote them; [] where its digest does not say."""
    digest = _digest(_read(folder / RESULTS_FILE)).get(CONFIG_FILE)
    return changed_keys(config_values(config), digest) if isinstance(digest, Mapping) else []


def facts_of_digest(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What `run` of experiment_config.json says of digests, when it is written over `config`. A finished run that is
    extended takes `run` over, with what was changed in it by hand."""
    completed = _read(folder / RESULTS_FILE).get("status") == "completed"
    changed = edited_config(folder, config) if completed else []
    return {DIGESTS: VERSION, **({EDITED: changed} if changed else {})}


def seal_items(folder: Path, new: Iterable[str]) -> dict[str, str]:
    """Hashes of the items of each task in `folder`, those of `new` tasks taken anew."""
    before = _read(folder / EVALUATION_FILE).get(ITEMS_DIGEST)
    kept = dict(before) if isinstance(before, Mapping) else {}
    made = {items_file(folder, task).parent.name for task in new}
    found = {task: _hash_of_file(items_file(folder, task)) for task in item_tasks(folder) if task in made}
    return {**{task: str(value) for task, value in kept.items() if task not in made}, **found}


def seal_scores(folder: Path, tasks: Mapping[str, Any], new: Iterable[str]) -> dict[str, str]:
    """The digest of evaluation.json of `folder`, in which the scores of `new` tasks were just made."""
    digest = _digest(_read(folder / EVALUATION_FILE))
    made = {task: digest_of(tasks[task]) for task in new}
    return {task: str(found) for task in tasks if (found := made.get(task, digest.get(task))) is not None}


def edited(folder: Path, metrics: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """What of a complete run in `folder` is not as it was written, in words: keys of results.json, tasks, rows of
    `metrics`. None for a record without a digest."""
    results, scores = _read(folder / RESULTS_FILE), _read(folder / EVALUATION_FILE)
    digest, of_tasks = _digest(results), _digest(scores)
    tasks = scores.get("results")
    tasks = tasks if isinstance(tasks, Mapping) else {}
    config = _read(folder / CONFIG_FILE)
    facts = config.get(RUN_FACTS)
    facts = facts if isinstance(facts, Mapping) else {}
    wrong = [f"{key} of {RESULTS_FILE}" for key in changed_keys(results, digest)]
    if METRICS_FILE in digest and digest_of(list(metrics)) != digest[METRICS_FILE]:
        wrong.append(METRICS_FILE)
    wrong += [f"{key} of {CONFIG_FILE}" for key in (*edited_config(folder, config), *(facts.get(EDITED) or ()))]
    if facts.get(DIGESTS):
        wrong += [f"digest of {RESULTS_FILE} (taken out)"] if not digest else []
        wrong += [f"digest of {name} (taken out)" for name in FILES if digest and name not in digest]
    elif not config and CONFIG_FILE in digest:
        wrong.append(f"{CONFIG_FILE} (gone)")
    # Scores of before there were digests have none, next to others that have.
    known = {task: values for task, values in tasks.items() if task in of_tasks}
    wrong += [f"{task} of {EVALUATION_FILE}" for task in changed_keys(known, of_tasks)]
    wrong += [f"items of {task}" for task in _changed_items(folder, scores.get(ITEMS_DIGEST))]
    return wrong if wrong or digest else None


def _changed_items(folder: Path, digest: object) -> list[str]:
    """The tasks whose items, where they are still there, are others than were written."""
    known = digest if isinstance(digest, Mapping) else {}
    return [
        task for task in item_tasks(folder) if task in known and _hash_of_file(items_file(folder, task)) != known[task]
    ]


def _hash_of_file(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:LENGTH]


def _hashes(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: digest_of(value) for key, value in values.items() if key != DIGEST and key not in NOTES}


def _digest(content: Mapping[str, Any]) -> Mapping[str, Any]:
    found = content.get(DIGEST)
    return found if isinstance(found, Mapping) else {}


def _read(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    return value
