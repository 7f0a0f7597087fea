"""What flash-linear-attention 0.6.0 gets wrong is right here: a test for each fault that was found in it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

import hf_arch
from tests.suite.models import close, perturbed_model, token_ids


@torch.no_grad()
def _whole_and_in_pieces(model, ids, pieces):
    whole = model(ids, use_cache=False).logits
    cache = DynamicCache(config=model.config)
    return whole, torch.cat([model(part, past_key_values=cache).logits for part in ids.split(pieces, 1)], 1)


@torch.no_grad()
def test_mamba2_groups_are_of_neighbouring_heads() -> None:
    """FLA repeats the groups over all heads in its prefill, and not in its steps."""
    model, ids = perturbed_model("mamba2"), token_ids(1, 12)
    mixer = model.model.layers[0].mixer
    assert mixer.options.n_groups == 2 and mixer.num_heads == 4
    whole, stepped = _whole_and_in_pieces(model, ids, 1)
    close(stepped, whole, 1e-5)
    # What the second half of B and C says reaches the second half of the heads alone.
    reached = []
    mixer.out_proj.register_forward_pre_hook(lambda module, args: reached.append(args[0]))
    model(ids, use_cache=False)
    B_and_C = 2 * mixer.inner + torch.arange(2 * mixer.group_width).view(2, 2, -1)  # rows after those of gate and x
    mixer.in_proj.weight[B_and_C[:, 1].flatten()] += 1.0
    model(ids, use_cache=False)
    before, after = (y.unflatten(-1, (2, -1)) for y in reached)
    assert torch.equal(before[..., 0, :], after[..., 0, :]) and not torch.equal(before[..., 1, :], after[..., 1, :])


def test_abc_decodes_from_its_cache() -> None:
    whole, stepped = _whole_and_in_pieces(perturbed_model("abc"), token_ids(2, 21), [9, 1, 1, 6, 1, 1, 2])
    close(stepped, whole, 1e-5)


@torch.no_grad()
def test_abc_gives_padding_no_weight() -> None:
    model, ids = perturbed_model("abc"), token_ids(2, 13)
    padded = torch.cat([torch.zeros(2, 5, dtype=torch.long), ids], 1)
    mask = (torch.arange(18) >= 5).long().expand(2, -1)
    close(model(padded, attention_mask=mask).logits[:, 5:], model(ids).logits, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mamba", "mamba2", "linear_attn", "abc"])
def test_packed_documents_do_not_leak(name: str) -> None:
    """FLA's models ignore the borders, or refuse them (ABC)."""
    model, ids = perturbed_model(name), token_ids(1, 20)
    positions = torch.cat([torch.arange(8), torch.arange(12)])[None]
    packed = model(ids, position_ids=positions, use_cache=False).logits
    apart = torch.cat([model(part, use_cache=False).logits for part in ids.split([8, 12], 1)], 1)
    close(packed, apart, 1e-5)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_mamba_takes_several_tokens_with_a_cache(name: str) -> None:
    whole, chunked = _whole_and_in_pieces(perturbed_model(name), token_ids(2, 21), [6, 7, 1, 4, 3])
    close(chunked, whole, 1e-5)


def test_rwkv7_can_have_one_layer() -> None:
    """FLA divides by the number of layers less one."""
    whole, stepped = _whole_and_in_pieces(perturbed_model("rwkv7", num_hidden_layers=1), token_ids(1, 9), 1)
    close(stepped, whole, 1e-5)
    fresh = hf_arch.tiny_config("rwkv7", num_hidden_layers=1)
    assert all(parameter.isfinite().all() for parameter in AutoModelForCausalLM.from_config(fresh).parameters())
