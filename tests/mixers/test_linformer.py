"""Causal Linformer against its formula, and across block borders: steps, padding, documents, changed tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

import hf_arch
from hf_arch.checks import check_model
from hf_arch.core.errors import ConfigError
from hf_arch.layers.mixers import linformer as module
from hf_arch.ops.blocks import plan_blocks
from hf_arch.perturbed import PerturbedModels
from tests.mixers.layers import assert_layer, build, heads, mixer_and_input, weights

BLOCK, SLOTS = 4, 2
MIXER = {"type": "linformer", "block_size": BLOCK, "num_slots": SLOTS}
LENGTH = 18  # four blocks and a half


def linformer(w: dict[str, Tensor], x: Tensor, to_key: Tensor, to_value: Tensor, num_heads: int) -> Tensor:
    """The formula, one query at a time; `to_key`, `to_value` are E and F, [Hkv or 1, r, C]."""
    size = w["q_proj.weight"].shape[0] // num_heads
    q, k, v = (heads(x @ w[f"{name}_proj.weight"].T + w.get(f"{name}_proj.bias", 0), size) for name in "qkv")
    groups = num_heads // k.shape[2]
    to_key, to_value = to_key.expand(k.shape[2], -1, -1), to_value.expand(k.shape[2], -1, -1)
    outputs = []
    for t in range(x.shape[1]):
        start = t // BLOCK * BLOCK
        keys, values = [k[:, start : t + 1]], [v[:, start : t + 1]]
        for first in range(0, start, BLOCK):
            block = slice(first, first + BLOCK)
            keys.append(torch.einsum("hrc,bchk->brhk", to_key, k[:, block]))
            values.append(torch.einsum("hrc,bchk->brhk", to_value, v[:, block]))
        key, value = (torch.cat(parts, 1).repeat_interleave(groups, 2) for parts in (keys, values))
        weight = (torch.einsum("bhk,bshk->bhs", q[:, t], key) / size**0.5).softmax(-1)
        outputs.append(torch.einsum("bhs,bshk->bhk", weight, value))
    return torch.stack(outputs, 1).flatten(2) @ w["o_proj.weight"].T + w.get("o_proj.bias", 0)


@pytest.mark.parametrize(
    ("sharing", "shape"), [("none", (2, SLOTS, BLOCK)), ("heads", (1, SLOTS, BLOCK)), ("kv", (1, SLOTS, BLOCK))]
)
def test_layer_equals_its_formula(sharing: str, shape: tuple[int, ...]) -> None:
    mixer, x = mixer_and_input("linformer", LENGTH, mixer={**MIXER, "sharing": sharing, "bias": True}, position="none")
    assert mixer.key_slots.shape == shape and (mixer.value_slots is None) == (sharing == "kv")
    w = weights(mixer)
    assert_layer(mixer, x, linformer(w, x.double(), w["key_slots"], w.get("value_slots", w["key_slots"]), 4))


def test_layers_may_share_one_projection() -> None:
    model = build("linformer", mixer={**MIXER, "sharing": "layers"}, position="none", num_hidden_layers=3)
    names = [name for name, _ in model.named_parameters() if "slots" in name or "shared" in name]
    assert names == ["model.shared.0.weight"]
    matrix, x = model.model.shared[0].weight, torch.randn(2, LENGTH, 32)
    for layer in model.model.layers:
        expected = linformer(weights(layer.mixer), x.double(), matrix.double(), matrix.double(), 4)
        assert_layer(layer.mixer, x, expected, shared=matrix)
    ids = torch.arange(LENGTH)[None] + 3
    model(ids, labels=ids).loss.backward()
    assert matrix.grad.abs().max() > 0


@torch.no_grad()
def test_changed_tokens_leave_earlier_logits_bit_equal() -> None:
    model = build("linformer")
    ids = torch.randint(3, 97, (1, LENGTH))
    before = model(ids).logits
    for at in range(LENGTH):
        changed = ids.clone()
        changed[0, at] = (changed[0, at] + 1) % 97
        after = model(changed).logits
        assert torch.equal(before[:, :at], after[:, :at])
        assert not torch.equal(before[:, at:], after[:, at:])


@torch.no_grad()
@pytest.mark.parametrize("prefill", range(1, 10))
def test_steps_from_anywhere_in_a_block_equal_the_whole(prefill: int) -> None:
    model = build("linformer")
    ids, cache = torch.randint(3, 97, (2, LENGTH)), DynamicCache(config=model.config)
    parts = [model(ids[:, :prefill], past_key_values=cache).logits]
    parts += [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(prefill, LENGTH)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits, rtol=0, atol=2e-5)


@torch.no_grad()
def test_rows_of_different_lengths_cross_borders_at_their_own_places() -> None:
    """Left and right padding, then padded chunks and steps: every row equals itself alone."""
    model = build("linformer")
    rows = [torch.randint(3, 97, (length,)) for length in (9, 4, 6)]
    mask = torch.tensor([[1] * 9, [0] * 5 + [1] * 4, [1] * 6 + [0] * 3])
    ids = torch.zeros(3, 9, dtype=torch.long)
    ids[mask.bool()] = torch.cat(rows)
    cache = DynamicCache(config=model.config)
    model(ids, attention_mask=mask, past_key_values=cache)
    for length in (1, 1, 5, 1, 1, 1, 3):
        chunk, more = torch.randint(3, 97, (3, length)), torch.ones(3, length, dtype=torch.long)
        if length > 1:
            more[1, :2] = 0
        mask = torch.cat((mask, more), 1)
        logits = model(chunk, attention_mask=mask, past_key_values=cache).logits
        for row in range(3):
            rows[row] = torch.cat((rows[row], chunk[row][more[row].bool()]))
            alone = model(rows[row][None]).logits[0, -int(more[row].sum()) :]
            torch.testing.assert_close(logits[row][more[row].bool()], alone, rtol=0, atol=2e-5)


@torch.no_grad()
def test_packed_documents_are_alone_and_the_last_goes_on() -> None:
    model = build("linformer")
    ids, cuts = torch.randint(3, 97, (1, LENGTH)), [0, 5, 6, 14, LENGTH]
    documents = [ids[:, a:b] for a, b in pairwise(cuts)]
    positions = torch.cat([torch.arange(document.shape[1]) for document in documents])[None]
    cache = DynamicCache(config=model.config)
    packed = model(ids, position_ids=positions, past_key_values=cache).logits
    expected = torch.cat([model(document).logits for document in documents], 1)
    torch.testing.assert_close(packed, expected, rtol=0, atol=2e-5)
    following = torch.randint(3, 97, (1, 3))
    goes_on = model(following, position_ids=torch.arange(4, 7)[None], past_key_values=cache).logits
    alone = model(torch.cat((documents[-1], following), 1)).logits[:, -3:]
    torch.testing.assert_close(goes_on, alone, rtol=0, atol=2e-5)


def test_plan_of_rows_with_documents_and_waiting_tokens() -> None:
    plan = plan_blocks(None, torch.tensor([[0, 0, 0, 1, 1, 2]]), torch.tensor([0]), (1, 6), 2)
    assert plan.place.tolist() == [[0, 1, 2, 4, 5, 6]] and plan.num_blocks == 4
    assert plan.document.tolist() == [[1, 1, 2, 3]]
    assert (plan.first_block.item(), plan.finished.item(), plan.running.item()) == (3, 0, 1)
    valid = torch.tensor([[False, True, True, True], [True, False, False, False], [False] * 4])
    plan = plan_blocks(valid, None, torch.tensor([1, 0, 1]), (3, 4), 2)
    none = plan.num_blocks * 2
    assert plan.place.tolist() == [[none, 1, 2, 3], [0, none, none, none], [none] * 4]
    assert plan.finished.tolist() == [2, 0, 0] and plan.running.tolist() == [0, 1, 1]


def test_initial_projections_keep_the_size_of_keys() -> None:
    config = hf_arch.tiny_config("linformer", mixer={**MIXER, "block_size": 64, "num_slots": 16})
    mixer = AutoModelForCausalLM.from_config(config).model.layers[0].mixer
    for weight in (mixer.key_slots, mixer.value_slots):
        assert weight.std().item() == pytest.approx(64**-0.5, rel=0.1)


def test_state_grows_by_slots_only_when_a_block_is_finished() -> None:
    cost = hf_arch.cost(hf_arch.tiny_config("linformer", mixer=MIXER, num_key_value_heads=4), 4)
    token = 2 * 32 * 4 * 2  # keys and values, width, bytes, layers
    assert [cost.state_bytes(n) // token for n in range(1, 9)] == [1, 2, 3, 2, 3, 4, 5, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": {**MIXER, "block_size": 0}}, "block_size 0"),
        ({"mixer": {**MIXER, "sharing": "rows"}}, "sharing"),
        ({"position": "alibi"}, "alibi"),
        ({"qk_norm": True}, "qk_norm"),
    ],
)
def test_mistakes_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hf_arch.tiny_config("linformer", **options)


def test_blocks_in_groups_equal_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain batch, packed documents, and a long chunk behind a filled cache: logits and gradients."""
    models = PerturbedModels(hf_arch.tiny_config("linformer", mixer=MIXER))
    ids = torch.randint(3, 97, (2, 41), generator=torch.Generator().manual_seed(2))
    positions = torch.cat([torch.arange(9), torch.arange(32)])[None]
    found = []
    for together in (1024, 2 * BLOCK):
        monkeypatch.setattr(module, "TOGETHER", together)
        model = models.copied()
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            behind = torch.cat([model(part, past_key_values=cache).logits for part in ids.split([6, 35], 1)], 1)
        logits = torch.stack([model(ids, use_cache=False).logits, model(ids, position_ids=positions).logits])
        logits.square().sum().backward()
        found.append([logits, behind, *(parameter.grad for parameter in model.parameters())])
    for whole, grouped in zip(*found, strict=True):
        torch.testing.assert_close(grouped, whole, rtol=0, atol=1e-5 * max(1.0, whole.abs().max().item()))


def test_every_invariant_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOGETHER", 2 * BLOCK)
    results = check_model(hf_arch.tiny_config("linformer", mixer=MIXER))
    assert [result for result in results if not result.passed] == []
