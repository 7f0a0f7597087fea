"""A prefix sees itself both ways: the formula, padding, documents, caches and generation; the rest is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

import hf_arch
from hf_arch.core.errors import ConfigError
from tests.suite.models import close, perturbed_model, token_ids

MIXERS: list[Any] = [
    {"type": "attention", "num_kv_heads": 2},
    ["mla", {"type": "differential", "output_gate": "headwise"}],
    ["attention", {"type": "attention", "kv": "shared"}],
    ["kv_builder", "cross_attention"],
]
IDS = token_ids(2, 17)
PREFIX = 6


def model_of(mixer: Any = "attention", **changes: Any) -> Any:
    return perturbed_model("mixed", **{"mixer": mixer, "num_hidden_layers": 2, "prefix_lm": True, **changes})


def types_of(ids: Tensor, prefix: int = PREFIX) -> Tensor:
    return (torch.arange(ids.shape[1]) < prefix).long().expand_as(ids)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("mixer", MIXERS, ids=str)
def test_it_is_the_mask_over_pairs(mixer: Any, backend: str) -> None:
    model = model_of(mixer)
    model.set_attn_implementation(backend)
    seen = torch.ones(17, 17, dtype=torch.bool).tril()
    seen[:PREFIX, :PREFIX] = True
    expected = model(IDS, attention_mask=seen.expand(2, 1, -1, -1), use_cache=False).logits
    close(model(IDS, token_type_ids=types_of(IDS), use_cache=False).logits, expected, 1e-5)
    causal = model(IDS, use_cache=False).logits
    assert not torch.allclose(expected[:, 0], causal[:, 0])
    close(model(IDS, token_type_ids=types_of(IDS, 1), use_cache=False).logits, causal, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mixer", MIXERS, ids=str)
def test_padding_documents_and_caches_change_nothing(mixer: Any) -> None:
    model, types = model_of(mixer), types_of(IDS)
    whole = model(IDS, token_type_ids=types, use_cache=False).logits
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=24)):
        parts, seen = [], 0
        for part in IDS.split([9, 1, 5, 2], 1):
            told = {"token_type_ids": types[:, seen : seen + part.shape[1]]}
            parts.append(model(part, past_key_values=cache, **told).logits)
            seen += part.shape[1]
        close(torch.cat(parts, 1), whole)
    padded, mask = torch.cat([IDS[:, :4] * 0, IDS], 1), (torch.arange(21) >= 4).long().expand(2, -1)
    for given in (0, 1):  # of the padding
        told = torch.cat([torch.full_like(types[:, :4], given), types], 1)
        close(model(padded, attention_mask=mask, token_type_ids=told, use_cache=False).logits[:, 4:], whole)
    alone = [model(part, token_type_ids=types_of(part, 3), use_cache=False).logits for part in IDS.split([7, 10], 1)]
    told = {"token_type_ids": torch.cat([types_of(part, 3) for part in IDS.split([7, 10], 1)], 1)}
    positions = torch.cat([torch.arange(7), torch.arange(10)])[None]
    close(model(IDS, position_ids=positions, use_cache=False, **told).logits, torch.cat(alone, 1))
    seen_as = positions.expand(2, -1).diff(dim=1, prepend=positions[:, :1].expand(2, -1)).lt(0).cumsum(1) + 1
    close(model(IDS, attention_mask=seen_as, use_cache=False, **told).logits, torch.cat(alone, 1))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_generation_prefills_the_prefix_and_goes_on_causally(options: dict[str, Any]) -> None:
    """Whether the prompt ends inside the prefix or behind it; new tokens are not of it."""
    model = model_of()
    asked = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    for prefix in (PREFIX, 17):
        told = {"token_type_ids": types_of(IDS, prefix), "attention_mask": torch.ones_like(IDS)}
        found = model.generate(IDS, **told, **asked, **options)
        assert torch.equal(
            found, model.generate(IDS, **told, **asked, use_cache=False, **{**options, "cache_implementation": None})
        )
        if not options:
            logits = model(found[:, :-1], token_type_ids=types_of(found[:, :-1], prefix)).logits
            assert torch.equal(logits[:, 16:].argmax(-1), found[:, 17:])
    assert not torch.equal(found, model.generate(IDS, **asked, **options))


def test_gradients_reach_later_tokens_of_the_prefix_alone() -> None:
    model = model_of()
    embeds = model.model.embed_tokens(IDS).detach().requires_grad_()
    out = model(inputs_embeds=embeds, token_type_ids=types_of(IDS), use_cache=False).logits
    [grad] = torch.autograd.grad(out[:, 0].sum(), embeds)
    assert grad[:, :PREFIX].abs().amin(dim=(0, 1)).gt(0).any() and not grad[:, PREFIX:].any()
    labels = IDS.clone()
    labels[:, :PREFIX] = -100
    model.train()(IDS, token_type_ids=types_of(IDS), labels=labels).loss.backward()


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"token_type_ids": types_of(IDS) * 2}, "token_type_ids: use 1 in the prefix and 0 behind it"),
        ({"token_type_ids": 1 - types_of(IDS)}, "token_type_ids: a prefix must be the first tokens of a document"),
        ({"token_type_ids": types_of(IDS)[:, :3]}, r"token_type_ids: shape \(2, 3\) is not allowed"),
        (
            {"token_type_ids": types_of(IDS), "position_ids": torch.cat([torch.arange(3), torch.arange(14)])[None]},
            None,
        ),
        ({"token_type_ids": types_of(IDS), "labels": IDS}, "labels: tokens of the prefix see each other"),
        (
            {"token_type_ids": types_of(IDS), "attention_mask": torch.ones(2, 1, 17, 17, dtype=torch.bool).tril()},
            "attention_mask over pairs of tokens says who sees whom already",
        ),
    ],
    ids=str,
)
def test_calls_that_cannot_be_honoured_are_refused(told: dict[str, Any], line: str | None) -> None:
    model = model_of()
    if line is None:  # the second document's first tokens are a prefix of it
        model(IDS, **told)
        return
    with pytest.raises(ValueError, match=line):
        model(IDS, **told)


def test_a_prefix_cut_by_a_chunk_is_refused() -> None:
    model, types = model_of(), types_of(IDS)
    cache = DynamicCache(config=model.config)
    model(IDS[:, :4], token_type_ids=types[:, :4], past_key_values=cache)
    with pytest.raises(ValueError, match="the whole prefix must be in the first call"):
        model(IDS[:, 4:], token_type_ids=types[:, 4:], past_key_values=cache)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"mixer": ["attention", "gla"]}, "prefix_lm: True is not supported by mixer 'gla' of layer 1"),
        ({"mixer": {"type": "attention", "window": 4}}, "by mixer 'attention' of layer 0"),
        ({"mixer": "forgetting_transformer"}, "by mixer 'forgetting_transformer' of layer 0"),
        ({"mixer": "nsa"}, "by mixer 'nsa' of layer 0"),
        ({"mixer": "stickbreaking"}, "by mixer 'stickbreaking' of layer 0"),
        ({"position": "alibi"}, "prefix_lm: True is not supported with position 'alibi'"),
        ({"losses": "multi_token"}, "prefix_lm: True is not supported with the loss 'MultiToken"),
    ],
    ids=str,
)
def test_parts_that_cannot_follow_it_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        hf_arch.tiny_config("mixed", **{"mixer": "attention", "num_hidden_layers": 2, "prefix_lm": True, **changes})
