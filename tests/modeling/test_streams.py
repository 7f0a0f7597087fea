"""Residual streams: each equals its formula written out over the same sublayers, and holds every invariant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.checks import check_model
from hf_arch.core.errors import ConfigError
from hf_arch.layers.contract import LayerContext, LayerOutput

IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
STREAMS: dict[str, Any] = {
    "add": "add",
    "parallel": "parallel",
    "parallel with two norms": {"type": "parallel", "norms": "two"},
    "LayerScale": "scaled",
    "scalars, x0 and backout": {"type": "scaled", "scale": "scalar", "scale_init": 1.0, "x0": "ramp", "backout": 0.2},
    "unet": "unet",
    "gated unet": {"type": "unet", "skip": "gate"},
    "unet with x0 and backout": {"type": "unet", "x0": "identity", "backout": 0.2},
    "gated": "gated",
    "hyper": {"type": "hyper", "streams": 2},
    "static hyper": {"type": "hyper", "streams": 3, "dynamic": False},
    "gated streams": {"type": "gated_streams", "streams": 2, "rank": 5},
    "mhc": {"type": "mhc", "streams": 2, "iterations": 3},
    "attention residual": "attention_residual",
    "weighted": {"type": "weighted", "keep": [[1.3, 0.8], [0.9, 1.1]], "add": [[0.7, 1.2]]},
    "attention residual in blocks": {"type": "attention_residual", "block_size": 2},
}


def model_of(stream: Any, architecture: str = "gla", **overrides: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(architecture, stream=stream, **overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def run(module: Any, x: torch.Tensor) -> torch.Tensor:
    return LayerOutput.of(module(x, context=LayerContext())).hidden_states


@pytest.mark.parametrize("norms", ["one", "two"])
def test_parallel_is_its_formula(norms: str):
    model = model_of({"type": "parallel", "norms": norms})
    x = model.model.embed_tokens(IDS)
    for layer in model.model.layers:
        mixer_in = layer.mixer_norm(x)
        ffn_in = mixer_in if norms == "one" else layer.ffn_norm(x)
        assert (layer.ffn_norm is None) == (norms == "one")
        x = x + run(layer.mixer, mixer_in) + run(layer.ffn, ffn_in)
    torch.testing.assert_close(model(IDS).logits, model.lm_head(model.model.norm(x)))


# No stream knows what an FFN is: with experts for one with a state of one width and one of several, CI has the rest.
WITH_EXPERTS = [
    pytest.param("moe", name, marks=() if name in ("gated", "hyper") else pytest.mark.slow) for name in STREAMS
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("architecture", "name"), [*(("mixed", name) for name in STREAMS), *WITH_EXPERTS])
def test_every_stream_holds_every_invariant(architecture: str, name: str):
    failed = [
        outcome
        for outcome in check_model(hf_arch.tiny_config(architecture, stream=STREAMS[name]))
        if not outcome.passed
    ]
    assert not failed, failed


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", STREAMS)
def test_both_kinds_of_checkpointing_give_the_same_gradients(name: str):
    wanted = None
    for kind in (None, False, True):
        model = model_of(STREAMS[name], "rwkv7").train()
        if kind is not None:
            model.activation_checkpointing_enable({"use_reentrant": kind})
            model.enable_input_require_grads()
        model(IDS, labels=IDS).loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        wanted = wanted or gradients
        torch.testing.assert_close(gradients, wanted)


def test_hidden_states_are_recorded_after_every_layer():
    out = model_of("parallel")(IDS, output_hidden_states=True)
    assert [tuple(states.shape) for states in out.hidden_states] == [(2, 9, 32)] * 3


def test_a_norm_position_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="norm_position: 'post' does not fit stream"):
        hf_arch.tiny_config("gla", stream="parallel", norm_position="post")
    with pytest.raises(ConfigError, match="stream: 'paralel' is not known; nearest: 'parallel'"):
        hf_arch.tiny_config("gla", stream="paralel")


@pytest.mark.parametrize("norm_position", ["pre", "stream"])
def test_weighted_is_its_formula(norm_position: str):
    keep, add = [[1.3, 0.8], [0.9, 1.1]], [[0.7, 1.2]]
    model = model_of({"type": "weighted", "keep": keep, "add": add}, norm_position=norm_position)
    x = model.model.embed_tokens(IDS)
    for index, layer in enumerate(model.model.layers):
        for at, (norm, part) in enumerate(((layer.mixer_norm, layer.mixer), (layer.ffn_norm, layer.ffn))):
            normed = norm(x)
            found = normed if norm_position == "stream" else x
            x = keep[index % 2][at] * found + add[0][at] * run(part, normed)
    torch.testing.assert_close(model(IDS).logits, model.lm_head(model.model.norm(x)))


@pytest.mark.parametrize("given", [[], [[1.0]], [[1.0, 1.0]] * 9, [[1.0, float("nan")]]])
def test_wrong_weights_are_refused(given: Any):
    with pytest.raises(ConfigError, match=r"stream weighted keep: .* is not allowed"):
        hf_arch.tiny_config("gla", stream={"type": "weighted", "keep": given})
