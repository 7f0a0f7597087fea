"""Published numbers, reproduced by the recipes of recipes/anchors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hf_arch.recipe.recipe import load_recipe
from hf_arch.training.run import run_training

ANCHORS = Path(__file__).parents[2] / "recipes" / "anchors"
SHAKESPEARE = os.environ.get("HF_ARCH_SHAKESPEARE")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(SHAKESPEARE is None, reason="HF_ARCH_SHAKESPEARE does not name the text of tiny Shakespeare")
def test_tiny_shakespeare_on_a_cpu(tmp_path: Path) -> None:
    recipe = load_recipe(ANCHORS / "shakespeare_char_cpu.yaml", [f"data.corpus={SHAKESPEARE}"])
    results = run_training(recipe, tmp_path / "run", quiet=True)
    assert results["tokens_seen"] == 2000 * 12 * 64
    assert results["final_val_loss"] == pytest.approx(1.88, abs=0.05)
