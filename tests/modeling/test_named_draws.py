"""Parameters are drawn from (seed, name): models share what they have in common, and distributions are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import hf_arch
from hf_arch.core.registry import MIXERS
from hf_arch.layers.mixers.attention import Attention
from hf_arch.models.named_draws import global_seed, named_draws

ALL = pytest.mark.parametrize("name", hf_arch.list_architectures())


def parameters(name: str, seed: int, auto: Any = AutoModelForCausalLM, **changes: Any) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = auto.from_config(hf_arch.tiny_config(name, **changes))
    return {key.removeprefix("model."): value.detach() for key, value in model.named_parameters()}


def shared(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [key for key, value in one.items() if key in other and other[key].shape == value.shape]


@ALL
def test_the_seed_decides(name: str) -> None:
    first, again, other = (parameters(name, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@ALL
def test_ablations_share_what_they_have_in_common(name: str) -> None:
    """Another vocabulary and one more norm move every draw of a single generator; here what is not resized stays."""
    first, other = parameters(name, 1), parameters(name, 1, vocab_size=131)
    common = shared(first, other)
    assert len(common) >= len(first) - 2 and all(torch.equal(first[key], other[key]) for key in common)


@pytest.mark.sampled(10)
@ALL
def test_a_model_shares_its_base_whatever_its_head(name: str) -> None:
    whole = parameters(name, 3)
    for auto in (AutoModel, AutoModelForSequenceClassification):
        base = parameters(name, 3, auto)
        assert all(torch.equal(base[key], whole[key]) for key in shared(base, whole))
        assert shared(base, whole)


def test_two_architectures_share_what_is_named_alike() -> None:
    llama, gla = (parameters(name, 1, ffn="glu", hidden_act="silu") for name in ("llama", "gla"))
    common = shared(llama, gla)
    assert {"embed_tokens.weight", "layers.1.ffn.down_proj.weight"} <= set(common)
    random = [key for key in common if "norm" not in key and "mixer" not in key]
    assert all(torch.equal(llama[key], gla[key]) for key in random)


def test_layers_differ_and_so_do_two_models_in_a_row() -> None:
    torch.manual_seed(0)
    one, two = (AutoModelForCausalLM.from_config(hf_arch.tiny_config("llama")) for _ in range(2))
    weights = [model.model.layers[index].ffn.down_proj.weight for model in (one, two) for index in (0, 1)]
    assert not any(torch.equal(weights[i], weights[j]) for i in range(4) for j in range(i))


def test_distributions_are_those_of_the_rules() -> None:
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("llama", hidden_size=256, vocab_size=2048))
    drawn = torch.cat([p.detach().flatten() for key, p in model.named_parameters() if p.dim() == 2])
    assert drawn.std().item() == pytest.approx(0.02, rel=0.01) and abs(drawn.mean().item()) < 1e-4
    assert torch.corrcoef(torch.stack([drawn[:100_000], drawn[100_000:200_000]]))[0, 1].abs() < 0.02


class _Block(nn.Module):
    def __init__(self, extra: bool):
        super().__init__()
        if extra:
            self.more = nn.Parameter(torch.zeros(40))
        self.a, self.b = nn.Parameter(torch.zeros(40)), nn.Parameter(torch.zeros(8, 5))

    def fill(self) -> None:
        if hasattr(self, "more"):
            self.more.copy_(torch.empty_like(self.more).uniform_())
        nn.init.orthogonal_(self.b)
        self.a.copy_(torch.rand_like(self.a).log())


def test_every_way_to_draw_goes_by_the_name_and_leaves_the_generator_alone() -> None:
    found = []
    for extra in (False, True):
        torch.manual_seed(5)
        block, before = _Block(extra), global_seed()
        with torch.no_grad(), named_draws(block, 7, "") as draws:
            draws.enter_module("block")
            block.fill()
            found.append((block.a.clone(), block.b.clone()))
            assert torch.rand(3).unique().numel() == 3
        assert global_seed() == before
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert torch.allclose(found[0][1].T @ found[0][1], torch.eye(5), atol=1e-5)


def test_a_plugin_that_draws_without_a_parameter_is_still_a_function_of_the_seed() -> None:
    class Loose(Attention):
        def init_weights(self) -> None:
            super().init_weights()
            with torch.no_grad():
                self.q_proj.weight.copy_(torch.randn(self.q_proj.weight.shape))

    MIXERS._entries["loose_draws"] = Loose
    try:
        runs = [parameters("llama", 1, mixer="loose_draws", **more) for more in ({}, {"vocab_size": 131})]
    finally:
        del MIXERS._entries["loose_draws"]
    key = "layers.1.mixer.q_proj.weight"
    assert torch.equal(runs[0][key], runs[1][key])
    assert not torch.equal(runs[0][key], runs[0]["layers.0.mixer.q_proj.weight"])
