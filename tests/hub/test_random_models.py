"""Models put together at random of every part that can be registered keep every invariant, and their bundles load.

A draw is a list of changes to a small model. Each is kept where the config takes it with those before; what a config
takes has to be right, and what it refuses it refuses by a ConfigError. The nightly run draws 60 models, which takes
about ten minutes of one core; HF_ARCH_TEST_MODELS draws another number.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hf_arch
from hf_arch.checks import check_model
from hf_arch.core.errors import ConfigError
from hf_arch.core.registry import (
    ACTIVATIONS,
    DEPTHS,
    EMBEDDINGS,
    FFNS,
    LOSSES,
    MIXERS,
    NORMS,
    POSITIONS,
    SITES,
    STREAMS,
)
from tests.attention.test_options import OPTIONS
from tests.hub.test_bundle import STRANGER, check, repository
from tests.modeling.test_parts import PARTS
from tests.suite.test_mixtures import _parts

MODELS = int(os.environ.get("HF_ARCH_TEST_MODELS", "60"))
BUNDLED = 8
"""How many of the models are bundled, which takes two processes' imports each."""


def ours(registry: Any) -> list[str]:
    return sorted(
        name for name in registry if registry[name].__module__.startswith(("hf_arch.", "torch", "transformers"))
    )


def with_names(registry: Any, specs: list[Any]) -> list[Any]:
    return [*ours(registry), *specs]


SHARED = {"type": "attention", "kv": "shared"}
MIXER_SPECS = [
    "lightning",
    *_parts("mixer"),
    *({"type": "attention", **each} for each in OPTIONS),
    *(SHARED for _ in range(4)),
    {"type": "attention", "window": 6},
    {"type": "attention", "window": 2},  # in one of 1, queries and keys have nothing to decide, and do not learn
    {"type": "differential", "window": 6, "output_gate": "headwise"},
    {"type": "parallel", "branches": ["gla", {"type": "attention", "window": 6}], "branch_norm": True},
    {"type": "parallel", "branches": ["mamba2", "rwkv7", "attention"], "output_scales": [0.5, 1.0, 0.25]},
]
STREAM_SPECS = with_names(
    STREAMS,
    [
        {"type": "attention_residual", "block_size": 2},
        {"type": "hyper", "streams": 2, "dynamic": False},
        {"type": "mhc", "streams": 2, "iterations": 3},
        {"type": "parallel", "norms": "two"},
        {"type": "scaled", "scale": "scalar", "x0": "ramp", "backout": 0.2},
        {"type": "unet", "scale": "vector", "x0": "identity"},
        {"type": "weighted", "keep": [[0.9, 1.1]], "add": [[0.5, 0.7]]},
    ],
)
PART_SPECS = {
    key: [value[key] for value in PARTS.values() if key in value] for key in ("embeddings", "sites", "depth", "losses")
}


def some(specs: list[Any], most: int) -> Any:
    return st.lists(st.sampled_from(specs), min_size=1, max_size=most)


CHANGES = st.one_of(
    st.tuples(st.just("ffn"), some([*with_names(FFNS, []), *_parts("ffn")], 3)),
    st.tuples(st.just("stream"), st.sampled_from(STREAM_SPECS)),
    st.tuples(st.just("embeddings"), some(with_names(EMBEDDINGS, PART_SPECS["embeddings"]), 3)),
    st.tuples(st.just("sites"), some(with_names(SITES, PART_SPECS["sites"]), 2)),
    st.tuples(st.just("depth"), st.sampled_from(with_names(DEPTHS, PART_SPECS["depth"]))),
    st.tuples(st.just("losses"), some(with_names(LOSSES, PART_SPECS["losses"]), 2)),
    st.tuples(
        st.just("parametrization"), st.sampled_from(["mup", {"type": "completep", "base_width": 16, "base_depth": 2}])
    ),
    st.tuples(st.just("norm"), st.sampled_from(ours(NORMS))),
    st.tuples(st.just("norm_position"), some(["pre", "post", "sandwich", "output", "stream"], 2)),
    st.tuples(st.just("position"), st.sampled_from(ours(POSITIONS))),
    st.tuples(st.just("hidden_act"), st.sampled_from(ours(ACTIVATIONS))),
    st.tuples(st.just("num_key_value_heads"), st.sampled_from([1, 2])),
    st.tuples(st.just("head_dim"), st.sampled_from([6, 16])),
    st.tuples(st.just("sliding_window"), st.sampled_from([2, 5])),
    st.tuples(st.just("attn_logit_softcapping"), st.just(3.0)),
    st.tuples(st.just("final_logit_softcapping"), st.just(5.0)),
    st.tuples(
        st.sampled_from(["tie_word_embeddings", "embedding_norm", "qk_norm", "attention_bias", "mlp_bias"]),
        st.just(True),
    ),
    st.tuples(st.just("final_norm"), st.just(False)),
    st.tuples(st.sampled_from(["residual_multiplier", "embedding_multiplier", "logits_scaling"]), st.just(1.5)),
)


@st.composite
def choices(draw: Any) -> dict[str, Any]:
    """What tiny_config of `mixed` is given: mixers, then as many of a dozen drawn changes as the config takes."""
    layers = draw(st.integers(2, 5))
    kept: dict[str, Any] = {"num_hidden_layers": layers}
    mixers: list[Any] = []
    drawn = draw(some([*([spec] for spec in MIXER_SPECS), ["kv_builder", "cross_attention"]], 5))
    for specs in (*drawn, ["attention"]):
        if len(mixers) + len(specs) <= layers and taken({**kept, "mixer": [*mixers, *specs]}):
            mixers += specs
    kept["mixer"] = mixers
    for key, value in draw(st.lists(CHANGES, min_size=2, max_size=12)):
        if taken({**kept, key: value}):
            kept[key] = value
    return kept


def taken(chosen: dict[str, Any]) -> bool:
    try:
        hf_arch.tiny_config("mixed", **chosen)
    except ConfigError:
        return False
    return True


def test_every_registered_mixer_can_be_drawn() -> None:
    drawn = {spec["type"] if isinstance(spec, dict) else spec for spec in MIXER_SPECS}
    assert drawn == set(ours(MIXERS))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_random_models_keep_every_invariant(tmp_path: Path, python: Any) -> None:
    folders: list[Path] = []
    tried: list[dict[str, Any]] = []

    @settings(max_examples=MODELS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(choices())
    def holds(chosen: dict[str, Any]) -> None:
        config = hf_arch.tiny_config("mixed", **chosen)
        assert [result for result in check_model(config) if not result.passed] == [], chosen
        tried.append(chosen)
        if len(tried) % max(1, MODELS // BUNDLED) == 0:
            parent = tmp_path / f"parent{len(folders)}"
            parent.mkdir()
            folders.append(repository(parent, "mixed", **chosen).rename(tmp_path / f"model{len(folders)}"))

    holds()
    check(python(STRANGER, *map(str, folders), installed=False), [folder.name for folder in folders])
