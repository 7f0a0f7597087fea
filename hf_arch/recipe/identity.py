"""What a run is called by: a hash over what changes its numbers, which ends the name of its folder.

`NUMERICS_VERSION` is part of it and the version of the package is not, since most releases change no number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from hf_arch.core.errors import ConfigError
from hf_arch.core.plugins import Plugin, load_plugin, used_plugins
from hf_arch.core.registry import COLUMNS
from hf_arch.numerics import NUMERICS_OF_RELEASE, NUMERICS_VERSION

# Do not change a result, so they stay out of the hash that names a run.
UNHASHED_TRAINING = (
    *("logging_", "save_", "report_to", "run_name", "project", "trackio_"),
    *("disable_tqdm", "push_to_hub", "hub_", "log_", "dataloader_", "zero_redundancy"),
)


def run_hash(
    values: Mapping[str, Any],
    *facts: str,
    code: object = f"numerics {NUMERICS_VERSION}",
    every_plugin: bool = False,
) -> str:
    """Ten hex digits over the sections of a recipe but `experiment`, the contents of the plugins that it uses, and
    `facts` that it only points to (the fingerprint of the data).

    Args:
        values: the recipe as plain nested values.
        facts: further text, in this order.
        code: what stands for the code that computes the numbers.
        every_plugin: count the files that `model.plugins` names, used or not, and no others, as earlier releases did.
    """
    kept = {key: value for key, value in values.items() if key != "experiment"}
    kept["training"] = {
        key: value for key, value in values["training"].items() if not key.startswith(UNHASHED_TRAINING)
    }
    # What a plugin says changes a result, where it lies does not.
    kept["model"] = dict(values["model"])
    named = _loaded(kept["model"].pop("plugins", None) or [])
    if every_plugin:
        facts += tuple(plugin.source.hashes[plugin.name] for plugin in named)
    else:
        facts += tuple(plugin.source.digest for plugin in used_plugins(kept, named))
    text = json.dumps([kept, code, *facts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def former_hashes(values: Mapping[str, Any], *facts: str) -> Iterator[str]:
    """What earlier releases with this `NUMERICS_VERSION` called the run of these values."""
    for release, numerics in NUMERICS_OF_RELEASE.items():
        if numerics == NUMERICS_VERSION:
            for every in (False, True):
                yield run_hash(values, *facts, code=release, every_plugin=every)
    yield run_hash(values, *facts, every_plugin=True)


def recipe_plugins(values: Mapping[str, Any]) -> list[Plugin]:
    """The plugins that the run of these values uses: each registers a name that the values hold, or that another of
    them looks up, or registers nothing and is named.

    Raises `ConfigError` where one cannot be loaded.
    """
    named = [load_plugin(path) for path in (values.get("model") or {}).get("plugins") or []]
    return used_plugins({key: value for key, value in values.items() if key != "experiment"}, named)


def column_plugins(values: Mapping[str, Any]) -> list[Plugin]:
    """The plugins of the columns that `experiment.columns` names: kept by the run, which they do not change."""
    names = (values.get("experiment") or {}).get("columns") or ()
    return [owner for name in names if name in COLUMNS and (owner := COLUMNS.owner(name)) is not None]


def _loaded(paths: list[str]) -> list[Plugin]:
    """The plugins of these files; what is not there (any more) or cannot be loaded is left out."""
    found = []
    for path in paths:
        try:
            found.append(load_plugin(path))
        except ConfigError:
            continue
    return found
