"""Where a planned run lies: `<results_dir>/<name>_<hash>`, or the folder that an earlier release made for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import read_json
from hf_arch.recipe.identity import former_hashes
from hf_arch.recipe.recipe import RUN_FACTS, Recipe
from hf_arch.runs.files import CONFIG_FILE


def run_folder(recipe: Recipe, results_dir: Path, name: str, *facts: str) -> Path:
    """The folder of the run `name`, which may not exist yet.

    An earlier release put another hash into the name. Such a folder is this run's where its recorded hash is what that
    release computes for its recorded recipe and today's data and plugins (`facts`, as for `Recipe.stable_hash`), and
    where that recipe is today's.
    """
    identity = recipe.stable_hash(*facts)
    folder = results_dir / f"{name}_{identity}"
    if folder.exists():
        return folder
    for other in sorted(results_dir.glob("*/" + CONFIG_FILE)):
        if re.fullmatch(re.escape(name) + "_[0-9a-f]{10}", other.parent.name) and _holds(other, identity, facts):
            return other.parent
    return folder


def _holds(config: Path, identity: str, facts: tuple[str, ...]) -> bool:
    """Whether a run's config, written by an earlier release or resumed since, is that of the run `identity`."""
    try:
        written = read_json(config)
        recorded = _recorded_hash(written)
        values = {key: value for key, value in written.items() if key != RUN_FACTS}
        if recorded == identity:
            return True
        return recorded in former_hashes(values, *facts) and Recipe.from_dict(values).stable_hash(*facts) == identity
    except (ConfigError, KeyError, TypeError, AttributeError):
        return False  # not a recipe that can be read today, so not this run


def _recorded_hash(written: dict[str, Any]) -> Any:
    facts = written.get(RUN_FACTS)
    return facts.get("hash") if isinstance(facts, dict) else None
