"""A bundle holds what depth, losses, streams and options of attention need, and loads without the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub.test_bundle import STRANGER, check, repository

SHARED = {"type": "attention", "kv": "shared"}
MODELS = {
    "cycles": {"depth": {"type": "cycles", "trained": [1]}, "norm": "rmsnorm_weightless", "mixer": "attention"},
    "parallel": {
        "mixer": {"type": "parallel", "branches": ["gla", {"type": "attention", "window": 6}], "branch_norm": True},
        "stream": {"type": "gated_streams", "streams": 2},
    },
    "exits": {"depth": {"type": "loop", "norm": "final"}, "losses": ["exits"], "mixer": ["attention", SHARED]},
    "normed": {
        "mixer": ["rg_lru", "lightning"],
        "stream": {"type": "weighted", "keep": [[0.9, 1.1]]},
        "norm_position": ["output", "stream"],
    },
}


@pytest.mark.rest
@pytest.mark.timeout(600)
def test_new_parts_are_bundled(tmp_path: Path, python):
    folders = []
    for name, changes in MODELS.items():
        (tmp_path / name).mkdir()
        made = repository(tmp_path / name, "mixed", **{"num_hidden_layers": 2, **changes})
        folders.append(made.rename(made.with_name(name)))
    check(python(STRANGER, *map(str, folders), installed=False), list(MODELS))
