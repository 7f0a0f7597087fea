"""A digest of what a run recorded, so that a number that is changed afterwards by hand is noticed.

`results.json` has it under `digest`, a hash for each of its keys (and for the rows of `metrics.jsonl`, once the run is
complete), `evaluation.json` one for each task. Every writer of these files goes through `sealed`: what it computed is
hashed anew, and what it took over from the file keeps its hash, so that an edit is not made good by a later write.

It catches accidents and careless edits. It is no signature: who edits a number can write the hash of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_arch.core.files import read_json, to_jsonable
from hf_arch.runs.files import EVALUATION_FILE, METRICS_FILE, RESULTS_FILE, read_metrics

DIGEST = "digest"
LENGTH = 12


def digest_of(value: object) -> str:
    """A hash of a value that JSON can hold; the same for 1 and 1.0, which other programs write for each other."""
    return hashlib.sha256(json.dumps(_plain(to_jsonable(value)), sort_keys=True).encode()).hexdigest()[:LENGTH]


def sealed(values: Mapping[str, Any], before: Mapping[str, Any], digest: Mapping[str, Any]) -> dict[str, str]:
    """The digest of `values`, written over a file with the values `before` and their `digest`. A value that was changed
    there by hand and is written again keeps the hash that it does not fit."""
    found = {key: digest_of(value) for key, value in values.items() if key != DIGEST}
    edited = [key for key in changed_keys(before, digest) if key in found and found[key] == digest_of(before.get(key))]
    return found | {key: str(digest.get(key, "")) for key in edited}


def changed_keys(values: Mapping[str, Any], digest: Mapping[str, Any]) -> list[str]:
    """The keys whose value is not what `digest` says: another, gone, or not there when it was made; [] without one."""
    if not digest:
        return []
    own = {key: digest_of(value) for key, value in values.items() if key != DIGEST}
    return sorted(key for key in own.keys() | (digest.keys() - {METRICS_FILE}) if own.get(key) != digest.get(key))


def seal_results(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json of `folder` becomes by these values, with their digest."""
    before = _read(folder / RESULTS_FILE)
    digest = sealed(values, before, _digest(before))
    if values.get("status") == "completed":
        digest[METRICS_FILE] = digest_of(read_metrics(folder / METRICS_FILE))
    return {**{key: value for key, value in values.items() if key != DIGEST}, DIGEST: digest}


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
    wrong = [f"{key} of {RESULTS_FILE}" for key in changed_keys(results, digest)]
    if METRICS_FILE in digest and digest_of(list(metrics)) != digest[METRICS_FILE]:
        wrong.append(METRICS_FILE)
    # Scores of before there were digests have none, next to others that have.
    known = {task: values for task, values in tasks.items() if task in of_tasks}
    wrong += [f"{task} of {EVALUATION_FILE}" for task in changed_keys(known, of_tasks)]
    return wrong if wrong or digest else None


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
