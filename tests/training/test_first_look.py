"""What is measured before the first step: branches, convolutions however they are written, and no trace left behind."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.registry import MIXERS, STREAMS
from hf_arch.layers.mixers.attention import Attention, AttentionOptions
from hf_arch.ops import native
from hf_arch.ops.vector_decay import KERNELS
from hf_arch.training.first_look import after_steps, fingerprint, first_look, optimizer_facts


def model_of(name: str, seed: int = 0, **overrides):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(hf_arch.tiny_config(name, **overrides))


def look(model):
    return first_look(model, torch.arange(3, 35)[None])


@MIXERS.register("hidden_convolution")
class HiddenConvolution(Attention):
    """A depthwise convolution that no option names, over a parameter of its own."""

    Options = AttentionOptions

    def __init__(self, config, options, layer_idx):
        super().__init__(config, options, layer_idx)
        self.taps = nn.Parameter(torch.ones(config.hidden_size, 1, 3))

    def forward(self, hidden_states: Tensor, context=None):  # type: ignore[override]
        x = F.conv1d(F.pad(hidden_states.mT, (2, 0)), self.taps, groups=hidden_states.shape[-1]).mT
        return super().forward(x, context)


@pytest.mark.parametrize(
    ("name", "overrides", "layers"),
    [
        ("llama", {}, []),
        ("gla", {"use_short_conv": False}, []),
        ("gla", {"use_short_conv": True}, "all"),
        ("mamba", {}, "all"),
        ("llama", {"mixer": ["attention", "hidden_convolution"]}, [1]),
    ],
)
def test_convolutions_are_found_from_what_runs(name, overrides, layers):
    model = model_of(name, num_hidden_layers=2, **overrides)
    assert look(model)["short_convolution"]["layers"] == ([0, 1] if layers == "all" else layers)


def test_a_branch_is_what_it_writes_over_the_stream():
    model = model_of("llama", num_hidden_layers=2)
    written = look(model)["branch_scale"]
    with torch.no_grad():
        model.model.layers[1].mixer.o_proj.weight.mul_(10)
        model.model.layers[0].ffn.down_proj.weight.zero_()
    again = look(model)["branch_scale"]
    assert again["mixer"][0] == pytest.approx(written["mixer"][0])
    assert again["mixer"][1] == pytest.approx(10 * written["mixer"][1], rel=0.2)  # the stream itself changed a little
    assert again["ffn"][0] == 0.0 and written["ffn"][0] > 0


@pytest.mark.parametrize("stream", list(STREAMS))
def test_every_stream_can_be_measured(stream):
    found = look(model_of("llama", stream=stream, norm_position="pre"))["branch_scale"]
    assert all(value is None or 0 <= value < 1e6 for values in found.values() for value in values)
    assert any(value is not None for value in found["mixer"])


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", hf_arch.list_architectures())
def test_it_leaves_no_trace(name):
    model = model_of(name).train()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    found = look(model)
    assert torch.equal(torch.rand(3), expected)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert found["kernels"] == ("torch" if native.compiler() is None else "compiled C")


@pytest.mark.skipif(native.compiler() is None, reason="no C compiler")
def test_a_recurrence_whose_kernel_could_not_be_built_ran_in_torch(monkeypatch):
    monkeypatch.setitem(native.SOURCES, "vector_decay.c", "no C")
    monkeypatch.delitem(vars(KERNELS), "library", raising=False)
    monkeypatch.setattr(native, "_unbuilt", set())
    for name, expected in (("llama", "compiled C"), ("gla", "torch")):
        model = model_of(name)
        found = look(model)
        model(input_ids=torch.arange(9)[None]).logits.sum().backward()
        assert found["kernels"] == "compiled C" and after_steps(found) == {**found, "kernels": expected}


def test_fingerprints_tell_starts_apart():
    assert fingerprint(model_of("gla")) == fingerprint(model_of("gla")) != fingerprint(model_of("gla", seed=1))


def test_groups_of_the_optimiser_are_recorded():
    model = model_of("llama")
    groups = [{"params": [model.lm_head.weight]}, {"params": list(model.model.parameters()), "weight_decay": 0.0}]
    facts = optimizer_facts(torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1))
    assert facts["class"] == "AdamW"
    assert [group["weight_decay"] for group in facts["groups"]] == [0.1, 0.0]
    assert facts["groups"][0]["parameters"] == model.lm_head.weight.numel()


@pytest.mark.parametrize("name", ["llama", "gla", "mamba", "gpt2"])
def test_weights_drawn_at_random_begin_near_a_guess(name):
    model = model_of(name)
    assert abs(look(model)["initial_loss"] - math.log(model.config.vocab_size)) < 0.5
