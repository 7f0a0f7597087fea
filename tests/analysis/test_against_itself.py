"""An architecture against itself, by real trainings: called different no more often than the level of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy.stats import binom, kstest

from hf_arch.analysis.stats import paired_difference
from hf_arch.recipe.recipe import Recipe
from hf_arch.training.run import run_training

SUITES, SEEDS = 80, 3


def trained_loss(data_seed: int, weight_seed: int, folder: Path) -> float:
    """Loss on the test rows after training; the data and their order go by one seed, the weights by another."""
    rows = {"vocab_size": 8, "sequence_length": 16, "num_tokens": 2, "examples": 256}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "ffn": "none"}
    training = {"max_steps": 20, "per_device_train_batch_size": 16, "learning_rate": 1e-2, "eval_steps": 20}
    seeds = {"seed": weight_seed, "data_seed": data_seed}
    values = {
        "model": {"architecture": "gla", **sizes},
        "probe": {"task": "selective_copying", "options": rows},
        "training": {**training, **seeds, "save_strategy": "no"},
    }
    return run_training(Recipe.from_dict(values), folder, quiet=True)["final_val_loss"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_architecture_is_seldom_called_different_from_itself(tmp_path: Path) -> None:
    pairs = []
    for suite in range(SUITES):
        seeds = range(suite * SEEDS, (suite + 1) * SEEDS)
        first, second = (
            {seed: trained_loss(seed, 2 * seed + arm, tmp_path / f"{arm}-{seed}") for seed in seeds} for arm in (0, 1)
        )
        pairs.append(paired_difference("first", "second", first, second))
    different = sum(pair.verdict in ("better", "worse") for pair in pairs)
    print(f"called different: {different} of {SUITES}")
    assert different <= binom.ppf(0.999, SUITES, 0.05)
    # Not too timid either: p values of a true null are spread evenly.
    assert kstest([pair.p_value or 1.0 for pair in pairs], "uniform").pvalue > 1e-3


def test_with_the_same_seeds_it_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    first, again, other = (trained_loss(0, seed, tmp_path / name) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first == again != other
