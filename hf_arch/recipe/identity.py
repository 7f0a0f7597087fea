"""What a run is called by: a hash over what changes its numbers, which ends the name of its folder.

`NUMERICS_VERSION` is part of it and the version of the package is not, since most releases change no number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_arch.numerics import NUMERICS_OF_RELEASE, NUMERICS_VERSION

# Do not change a result, so they stay out of the hash that names a run.
UNHASHED_TRAINING = (
    *("logging_", "save_", "report_to", "run_name", "project", "trackio_"),
    *("disable_tqdm", "push_to_hub", "hub_", "log_", "dataloader_", "zero_redundancy"),
)


def run_hash(values: Mapping[str, Any], *facts: str, code: object = f"numerics {NUMERICS_VERSION}") -> str:
    """Ten hex digits over the sections of a recipe but `experiment`, the contents of its plugins, and `facts` that it
    only points to (the fingerprint of the data).

    Args:
        values: the recipe as plain nested values.
        facts: further text, in this order.
        code: what stands for the code that computes the numbers.
    """
    kept = {key: value for key, value in values.items() if key != "experiment"}
    kept["training"] = {
        key: value for key, value in values["training"].items() if not key.startswith(UNHASHED_TRAINING)
    }
    # What a plugin says changes a result, where it lies does not.
    kept["model"] = dict(values["model"])
    plugins = [Path(path).expanduser() for path in kept["model"].pop("plugins", None) or []]
    facts += tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in plugins if path.is_file())
    text = json.dumps([kept, code, *facts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def former_hashes(values: Mapping[str, Any], *facts: str) -> Iterator[str]:
    """What earlier releases with this `NUMERICS_VERSION` called the run of these values."""
    for release, numerics in NUMERICS_OF_RELEASE.items():
        if numerics == NUMERICS_VERSION:
            yield run_hash(values, *facts, code=release)
