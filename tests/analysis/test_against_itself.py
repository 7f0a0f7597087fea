"""An architecture against itself, by real trainings: called different no more often than the level of the tests."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binom, kstest

import hf_arch
from hf_arch.analysis.stats import paired_difference
from hf_arch.data.probes import PROBES
from hf_arch.training.probes import ProbeTraining, learn_probe

SUITES, SEEDS = 80, 3
OPTIONS = ProbeTraining(max_steps=20, per_device_train_batch_size=16, learning_rate=1e-2, eval_steps=20)


def trained_loss(data_seed: int, weight_seed: int) -> float:
    """Loss on the test rows after training; the data and their order go by one seed, the weights by another."""
    rows = {"vocab_size": 8, "sequence_length": 16, "num_tokens": 2}
    probe = PROBES["selective_copying"]
    train, test = (
        probe.data(split, data_seed, examples=examples, **rows) for split, examples in (("train", 256), ("test", 64))
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8, "ffn": "none"}
    config = hf_arch.config_from_dict({"architecture": "gla", "max_position_embeddings": 16, **sizes})
    torch.manual_seed(weight_seed)
    model = hf_arch.core.registry.ARCHITECTURES.get("gla").causal_lm(config)
    return learn_probe(model, train, test, OPTIONS).scores[-1].loss


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_architecture_is_seldom_called_different_from_itself() -> None:
    pairs = []
    for suite in range(SUITES):
        seeds = range(suite * SEEDS, (suite + 1) * SEEDS)
        first, second = ({seed: trained_loss(seed, 2 * seed + arm) for seed in seeds} for arm in (0, 1))
        pairs.append(paired_difference("first", "second", first, second))
    different = sum(pair.verdict in ("better", "worse") for pair in pairs)
    print(f"called different: {different} of {SUITES}")
    assert different <= binom.ppf(0.999, SUITES, 0.05)
    # Not too timid either: p values of a true null are spread evenly.
    assert kstest([pair.p_value or 1.0 for pair in pairs], "uniform").pvalue > 1e-3


def test_with_the_same_seeds_it_is_the_same_to_the_last_bit() -> None:
    assert trained_loss(0, 1) == trained_loss(0, 1) != trained_loss(0, 2)
