"""One precision for all runs of a set: what `training.precision: auto` became for the first of them.

The first worker that starts a run decides and writes it next to the claims; every other worker, on this machine or
another one, reads it there, and each run finds it in the `run` section of its config. Without that, a busy moment or a
second machine would give two runs of one comparison different arithmetic. On a GPU nothing is measured: each run asks
its device.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_arch.core.files import create_atomic, read_json
from hf_arch.recipe.recipe import RUN_FACTS
from hf_arch.runs.record import RunRecord

PRECISION_FILE = "precision.json"


def leaves_precision_open(config: Mapping[str, Any]) -> bool:
    """Whether the run of this config is left to `auto`. Probes compute in fp32 unless they ask for something else."""
    default = "auto" if config.get("probe") is None else "fp32"
    return "model" in config and (config.get("training") or {}).get("precision", default) == "auto"


def with_set_precision(
    config: Mapping[str, Any], folder: Path, earlier: Iterable[RunRecord | None] = ()
) -> Mapping[str, Any]:
    """The config of a run with the precision of its set, where it is left open.

    folder: where workers of the set meet. earlier: what runs of the set have written, whose precision is kept.
    """
    if not leaves_precision_open(config):
        return config
    decision = _decision(folder / PRECISION_FILE, earlier)
    return config if decision is None else {**config, RUN_FACTS: {**config.get(RUN_FACTS, {}), "precision": decision}}


def _decision(file: Path, earlier: Iterable[RunRecord | None]) -> Mapping[str, Any] | None:
    if file.is_file():
        return read_json(file)
    from hf_arch.training.precision import choose_precision, training_device

    open_before = (run.precision for run in earlier if run is not None and run.precision is not None)
    if (name := next(open_before, None)) is not None:
        chosen: Mapping[str, Any] = {"name": name, "reason": "the set was begun in it"}
    elif training_device().type != "cpu":
        return None
    else:
        chosen = choose_precision().to_dict()
    return chosen if create_atomic(file, json.dumps(chosen, indent=2) + "\n") else read_json(file)
