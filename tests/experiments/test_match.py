"""Matching: models of different kinds come out equal, at sizes that their heads allow; what cannot be is said."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.experiments.planning.match import Matched, Sizer, match_model, model_size
from hf_arch.recipe.match import MatchOptions

BASE = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SEQ_LEN = 64


def config(changes: Mapping[str, int], **model: Any) -> Any:
    return hf_arch.config_from_dict({**BASE, "max_position_embeddings": SEQ_LEN, **model, **changes})


def sizer(by: str, **model: Any) -> Sizer:
    return lambda changes: model_size(config(changes, **model), by, SEQ_LEN)


def match_models(models: Mapping[str, Sizer], options: MatchOptions) -> dict[str, Matched]:
    """All of them brought to the size of the first."""
    first, *others = models
    target = models[first]({})
    found = {name: match_model(models[name], target, options, name, first) for name in others}
    return {first: Matched({}, target, 0.0, options.by), **found}


MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"architecture": "gpt2"},
    "llama": {"architecture": "llama", "tie_word_embeddings": True},
    "gla": {"architecture": "gla", "tie_word_embeddings": True},
    "mamba": {"architecture": "mamba", "num_hidden_layers": 4},
}


def sizers(by: str) -> dict[str, Sizer]:
    return {name: sizer(by, **model) for name, model in MODELS.items()}


@pytest.mark.parametrize("by", ["parameters", "flops"])
def test_models_become_equal_within_the_tolerance(by: str) -> None:
    matched = match_models(sizers(by), MatchOptions(by=by, tolerance=0.02))  # type: ignore[arg-type]
    sizes = {name: sizer(by, **MODELS[name])(found.changes) for name, found in matched.items()}
    for name, found in matched.items():
        assert found.size == sizes[name]
        assert found.residual == pytest.approx(sizes[name] / sizes["gpt2"] - 1)
    assert max(sizes.values()) / min(sizes.values()) <= 1.04
    assert matched["gpt2"].changes == {}
    assert set(matched["llama"].changes) == set(matched["gla"].changes) == {"intermediate_size"}
    assert set(matched["mamba"].changes) == {"hidden_size"}


def test_states_become_equal_by_the_width() -> None:
    """An FFN keeps no state, so the width of the model is what changes."""
    models = {
        "llama": sizer("state", architecture="llama"),
        "gqa": sizer("state", architecture="gqa", num_key_value_heads=1),
    }
    matched = match_models(models, MatchOptions(by="state"))
    assert matched["gqa"].changes == {"hidden_size": 256}
    assert matched["gqa"].residual == 0


def test_a_field_of_the_mixer_can_be_varied() -> None:
    models = {"wide": sizer("state", architecture="mamba", hidden_size=256), "mamba": sizer("state", **MODELS["mamba"])}
    changes = match_models(models, MatchOptions(by="state", vary="state_size", tolerance=0.05))["mamba"].changes
    assert set(changes) == {"state_size"}
    with pytest.raises(ConfigError, match=r"nearest: 'hidden_size'"):
        match_models(models, MatchOptions(by="state", vary="hiden_size"))


def test_widths_go_with_the_heads() -> None:
    options = MatchOptions(vary="hidden_size", tolerance=0.1)
    assert match_models(sizers("parameters"), options)["llama"].changes["hidden_size"] % 8 == 0


def test_round_numbers_are_preferred() -> None:
    found = match_model(
        lambda changes: changes.get("intermediate_size", 1), 1000.0, MatchOptions(tolerance=0.1), "a", "b"
    )
    assert found.changes == {"intermediate_size": 1024}


@pytest.mark.rest
def test_what_cannot_be_matched_is_said() -> None:
    models = {"small": sizer("parameters", architecture="llama")}
    models["deep"] = sizer("parameters", architecture="llama", num_hidden_layers=40)
    with pytest.raises(ConfigError, match=r"run 'deep' comes to .* from the .* of 'small'"):
        match_models(models, MatchOptions(vary="intermediate_size", tolerance=0.01))
    with pytest.raises(ConfigError, match="has no bytes of state"):
        match_model(lambda changes: 1.0, 0.0, MatchOptions(by="state"), "a", "b")


@given(
    target=st.floats(1, 1e12),
    power=st.sampled_from([1, 2]),
    slope=st.floats(0.5, 1e4),
    offset=st.floats(0, 1e6),
    multiple=st.sampled_from([1, 2, 3, 4, 8, 12, 40]),
    tolerance=st.sampled_from([0.001, 0.01, 0.1]),
)
@settings(deadline=None)
def test_the_nearest_size_is_found_or_an_error_says_how_far_it_is(
    target: float, power: int, slope: float, offset: float, multiple: int, tolerance: float
) -> None:
    """Against every allowed value near the exact solution."""

    def size(changes: Mapping[str, int]) -> float:
        width = changes.get("hidden_size", multiple)
        if width % multiple:
            raise ConfigError(f"{width} does not divide")
        return offset + slope * width**power

    def error(width: int) -> float:
        return abs(size({"hidden_size": width}) / target - 1)

    exact = max(0.0, (target - offset) / slope) ** (1 / power)
    near = max(1, math.floor(exact / multiple)) * multiple
    best = min(error(width) for width in (near, near + multiple) if width <= 1 << 20) if near <= 1 << 20 else 1.0
    check(size, target, MatchOptions(vary="hidden_size", tolerance=tolerance), best)


def check(size: Callable[[Mapping[str, int]], float], target: float, options: MatchOptions, best: float) -> None:
    try:
        found = match_model(size, target, options, "one", "other")
    except ConfigError as caught:
        assert best > options.tolerance
        message = str(caught)
        assert "run 'one' comes to" in message and "\n" not in message
        return
    assert abs(found.residual) <= options.tolerance
    assert found.size == size(found.changes)


@pytest.mark.rest
@given(
    architecture=st.sampled_from(["gpt2", "llama", "gla", "mamba", "retnet", "delta_net"]),
    heads=st.sampled_from([1, 2, 3, 4, 6]),
    layers=st.integers(1, 4),
    width=st.integers(2, 6).map(lambda number: 24 * number),  # even widths of a head, for rotary positions
    by=st.sampled_from(["parameters", "flops", "state"]),
)
@settings(deadline=None, max_examples=25)
def test_any_model_is_matched_or_refused_in_one_line(
    architecture: str, heads: int, layers: int, width: int, by: str
) -> None:
    model = {
        "architecture": architecture,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "hidden_size": width,
    }
    size = sizer(by, **model)
    target = sizer(by, architecture="llama")({})
    options = MatchOptions(by=by)  # type: ignore[arg-type]
    try:
        found = match_model(size, target, options, "one", "llama")
    except ConfigError as error:
        assert "run 'one' comes to" in str(error) and "\n" not in str(error)
        return
    assert abs(found.residual) <= 0.01
    assert size(found.changes) == found.size


def test_a_width_far_from_what_was_written_is_said() -> None:
    """Heads of 256 beside a stream of 64: what does not shrink with the stream takes its place."""
    matched = Matched({"hidden_size": 9}, 147_217, 0.003)
    assert "was written" not in matched.describe()
    assert "hidden_size=9" in (said := replace(matched, width=64).describe()) and "; 64 was written" in said
    assert "was written" not in replace(matched, width=12).describe()
