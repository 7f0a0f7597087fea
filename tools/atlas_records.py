"""The records of the atlas: `docs/atlas/TASK.jsonl`, one line for each finished run.

A line has the run's folder, its results.json and its experiment_config.json (of a run that only chose a learning rate,
its results alone).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import read_json, write_atomic, write_json
from hf_arch.recipe.recipe import RUN_FACTS
from hf_arch.runs.digest import DIGESTS
from hf_arch.runs.files import CONFIG_FILE, RESULTS_FILE, run_folders
from hf_arch.runs.provenance import source_digest
from hf_arch.runs.record import RunRecord

ROOT = Path(__file__).resolve().parent.parent
RECIPES, RECORDS, README = ROOT / "recipes" / "atlas", ROOT / "docs" / "atlas", ROOT / "README.md"
TASKS = ("text", "mqar", "selective_copying", "parity", "s5", "memorization")
_LEFT_OUT = ("sample", "precision_measured", "attribution", "digest")
"""Long, and read by nothing that the page says; and the digest of a file that these are then missing from."""
_SELECTION = "learning_rates"


def store(task: str, results: Path, records: Path = RECORDS) -> int:
    """Adds every run of `results` that completed to the records of a task; returns how many there are now."""
    kept = {line["folder"]: line for line in lines(records / f"{task}.jsonl")}
    for folder in run_folders(results):
        name = folder.relative_to(results).as_posix()
        record = RunRecord.load(folder)
        if name in kept or not record.completed:
            continue
        found = {key: value for key, value in read_json(folder / RESULTS_FILE).items() if key not in _LEFT_OUT}
        kept[name] = {"folder": name, "results": found}
        if not name.startswith(f"{_SELECTION}/"):
            kept[name]["config"] = read_json(folder / CONFIG_FILE)
    text = "".join(json.dumps(kept[name], separators=(",", ":"), sort_keys=True) + "\n" for name in sorted(kept))
    for folder in (results.resolve(), ROOT):  # where they lie on this machine says nothing on another
        text = text.replace(f"{folder}{os.sep}", "")
    records.mkdir(parents=True, exist_ok=True)
    write_atomic(records / f"{task}.jsonl", text)
    return len(kept)


def restore(task: str, results: Path, records: Path = RECORDS, *, sweep: bool = True) -> int:
    """Writes the recorded runs of a task as finished run folders, where there is none, those of the sweep of learning
    rates too unless `sweep` is False; returns how many were written."""
    written = 0
    for line in lines(records / f"{task}.jsonl"):
        folder = results / line["folder"]
        if (folder / RESULTS_FILE).exists() or not (sweep or "config" in line):
            continue
        if "config" in line:
            write_json(folder / CONFIG_FILE, _unsealed(line["config"]))
        write_json(folder / RESULTS_FILE, line["results"])
        written += 1
    return written


def _unsealed(config: dict[str, Any]) -> dict[str, Any]:
    """Without the word that results.json has a digest, which records leave out: it would count as taken out."""
    return {key: {**value, DIGESTS: 0} if key == RUN_FACTS else value for key, value in config.items()}


def check_source(task: str, records: Path = RECORDS) -> None:
    """Raises ConfigError where a record of the task was made by different code than the package has now."""
    for line in lines(records / f"{task}.jsonl"):
        made = line["results"].get("provenance", {})
        if made.get("source_sha256") != source_digest():
            raise ConfigError(
                f"{records / f'{task}.jsonl'}: {line['folder']} was made by different code: to resume, check out "
                f"commit {made.get('git_commit')}; to start over, move the file away"
            )


def lines(file: Path) -> Iterator[dict[str, Any]]:
    if file.is_file():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(f"{file}: line {number} is not JSON: {error}") from None
