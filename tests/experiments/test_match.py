"""Matching: equal within the tolerance, by the width that leaves the mixer alone; what cannot be done is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

import hf_arch
from hf_arch.errors import ConfigError
from hf_arch.experiments.match import match_models
from hf_arch.experiments.recipe import MatchOptions

BASE = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def builder(**model: Any) -> Any:
    def build(changes: Mapping[str, int]) -> Any:
        return hf_arch.config_from_dict({**BASE, "max_position_embeddings": 64, **model, **changes})

    return build


MODELS = {
    "gpt2": builder(architecture="gpt2"),
    "llama": builder(architecture="llama", tie_word_embeddings=True),
    "gla": builder(architecture="gla", tie_word_embeddings=True),
    "mamba": builder(architecture="mamba", num_hidden_layers=4),
}


@pytest.mark.parametrize("by", ["parameters", "flops"])
def test_models_become_equal_within_the_tolerance(by: str) -> None:
    matched = match_models(MODELS, MatchOptions(by=by, tolerance=0.02), seq_len=64)  # type: ignore[arg-type]
    sizes = {}
    for name, found in matched.items():
        cost = hf_arch.cost(MODELS[name](found.changes), 64)
        sizes[name] = cost.params_total if by == "parameters" else cost.flops_per_token_train
        assert found.size == sizes[name]
        assert found.residual == pytest.approx(sizes[name] / sizes["gpt2"] - 1)
    assert max(sizes.values()) / min(sizes.values()) <= 1.04
    assert matched["gpt2"].changes == {}
    assert set(matched["llama"].changes) == set(matched["gla"].changes) == {"intermediate_size"}
    assert set(matched["mamba"].changes) == {"hidden_size"}


def test_widths_go_with_the_heads() -> None:
    options = MatchOptions(vary="hidden_size", tolerance=0.1)
    changes = match_models(MODELS, options, seq_len=64)["llama"].changes
    assert changes["hidden_size"] % 8 == 0


def test_what_cannot_be_matched_is_said() -> None:
    models = {"small": builder(architecture="llama"), "deep": builder(architecture="llama", num_hidden_layers=40)}
    with pytest.raises(ConfigError, match=r"run 'deep' comes to .* from the .* of 'small'"):
        match_models(models, MatchOptions(vary="intermediate_size", tolerance=0.01), seq_len=64)
    with pytest.raises(ConfigError, match="nearest: 'small'"):
        match_models(models, MatchOptions(reference="smal"), seq_len=64)
