"""Attention in stages: a bias of one's own from key positions is right under padding, packing, caches and windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

import hf_arch
from hf_arch import checks
from hf_arch.checks import check_model
from hf_arch.core.errors import ConfigError
from hf_arch.core.registry import MIXERS
from hf_arch.layers.contract import LayerContext
from hf_arch.layers.key_positions import key_positions
from hf_arch.layers.mixers.attention import Attention, AttentionOptions
from tests.suite.models import close, perturbed_model, token_ids


@MIXERS.register("learned_distance")
class LearnedDistance(Attention):
    """A learned bias of each head and distance, and of whether the key is the document's first token."""

    Options = AttentionOptions

    def __init__(self, config: Any, options: AttentionOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.table = nn.Embedding(8, self.num_heads)
        self.first = nn.Embedding(2, self.num_heads)

    def scores(self, query: Tensor, key: Tensor, context: LayerContext) -> Tensor | None:
        assert context.keys is not None
        distance = context.keys.queries[:, :, None] - context.keys.keys[:, None]
        bias = self.table(distance.clamp(0, 7)) + self.first((context.keys.keys == 0).long())[:, None]
        return bias.permute(0, 3, 1, 2)


OWN = {"type": "learned_distance"}


@pytest.mark.parametrize("mixer", [OWN, {**OWN, "window": 9}, [OWN, "gla"], {**OWN, "sinks": True}], ids=str)
def test_a_bias_of_ones_own_keeps_the_invariants(mixer: Any) -> None:
    results = check_model(hf_arch.tiny_config("llama", mixer=mixer, qk_norm=False))
    assert [result for result in results if not result.passed] == []


@torch.no_grad()
@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
def test_a_bias_of_ones_own_from_every_cache(window: int, cache_class: Any) -> None:
    model, ids = perturbed_model("llama", mixer={**OWN, "window": window}), token_ids(2, 17)
    sizes = {"max_cache_len": 24} if cache_class is StaticCache else {}
    cache = cache_class(config=model.config, **sizes)
    parts = [model(part, past_key_values=cache).logits for part in ids.split([9, 1, 1, 1, 1, 1, 1, 1, 1], 1)]
    close(torch.cat(parts, 1), model(ids, use_cache=False).logits, 1e-5)


@torch.no_grad()
def test_generate_with_padding_and_a_static_cache() -> None:
    model, ids = perturbed_model("llama", mixer=OWN), token_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids * mask, use_cache=False, **options)
    assert torch.equal(model.generate(ids * mask, **options), expected)
    options["cache_implementation"], options["disable_compile"] = "static", True
    assert torch.equal(model.generate(ids * mask, **options), expected)


def test_key_positions_count_valid_tokens_of_each_document() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    documents = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 1]])
    keys = key_positions((2, 6), (6, 0, 0), mask, documents, None, torch.device("cpu"))
    assert keys.keys[0, 2:].tolist() == [0, 1, 0, 1] and keys.keys[1, :4].tolist() == [0, 0, 1, 2]
    assert keys.visible[0, 5].tolist() == [False] * 4 + [True, True]
    assert keys.visible[1, 3].tolist() == [False, True, True, True, False, False]
    cached = key_positions((2, 1), (6, 0, 5), mask, None, 2, torch.device("cpu"))
    assert cached.slots.tolist() == [5] and cached.queries.tolist() == [[3], [3]]
    assert cached.visible[0, 0].tolist() == [False] * 4 + [True, True]


def test_key_positions_are_made_once_and_only_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counting(*args: Any) -> Any:
        made.append(args)
        return key_positions(*args)

    monkeypatch.setattr("hf_arch.models.mask_plan.key_positions", counting)
    perturbed_model("llama")(token_ids(1, 5))
    assert not made
    perturbed_model("llama", mixer=OWN, num_hidden_layers=4)(token_ids(1, 5))
    assert len(made) == 1


def test_a_mask_over_pairs_is_read_as_documents_or_refused() -> None:
    model, ids = perturbed_model("llama", mixer=OWN), token_ids(1, 6)
    packed = torch.ones(6, 6, dtype=torch.bool).tril()
    packed[3:, :3] = False
    with torch.no_grad():
        alone = torch.cat([model(part).logits for part in ids.split(3, 1)], 1)
        close(model(ids, attention_mask=packed[None]).logits, alone, 1e-5)
        packed[5, 3] = False
        with pytest.raises(ValueError, match="key positions, cannot follow"):
            model(ids, attention_mask=packed[None])
        with pytest.raises(ValueError, match="finished masks do not say where the keys are"):
            model(ids, attention_mask={"full_attention": None})


def test_flash_attention_is_refused_with_a_bias() -> None:
    model = perturbed_model("llama", mixer=OWN)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="'flash_attention_2' would not apply a bias of the scores of layer 0"):
        model(token_ids(1, 6))


@MIXERS.register("half_values")
class HalfValues(Attention):
    """Each of the other stages overridden alone."""

    def project(self, hidden_states: Tensor, context: LayerContext) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().project(hidden_states, context)
        return query, key, value / 2

    def read_out(self, out: Tensor, hidden_states: Tensor, value: Tensor) -> Tensor:
        return super().read_out(out * 2, hidden_states, value)


@torch.no_grad()
def test_stages_are_overridden_one_at_a_time() -> None:
    ids = token_ids(2, 9)
    expected = perturbed_model("llama")(ids).logits
    close(perturbed_model("llama", mixer="half_values")(ids).logits, expected, 1e-5)


@pytest.mark.parametrize("name", ["mla", "differential"])
def test_heads_of_two_widths_take_the_fused_kernel(name: str) -> None:
    config = hf_arch.tiny_config("mla") if name == "mla" else hf_arch.tiny_config("llama", mixer={"type": name})
    model, ids = checks.perturbed_model(config), token_ids(2, 40)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[0, :7] = 0
    for given in ({}, {"attention_mask": mask}):
        with torch.profiler.profile() as profile:
            model(ids, use_cache=False, **given).logits.sum().backward()
        called = {event.key for event in profile.key_averages()}
        assert "aten::_scaled_dot_product_flash_attention_for_cpu" in called
        assert "aten::_scaled_dot_product_attention_math" not in called
