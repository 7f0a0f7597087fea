"""Calls that few make: right, or refused in one line. Static caches fed by hand, rows of a cache chosen, other tables
by token id, gradients through runs that have none, experts in layers that run again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers import DynamicCache, StaticCache

import hf_arch
from hf_arch.core.registry import EMBEDDINGS
from tests.suite.models import ARCHITECTURES, close, perturbed_model, token_ids
from tests.suite.test_documents import LENGTHS, TOTAL, additive, rows_with_gaps, ways

OUTSIDE = ("model.embed_tokens.weight", "lm_head.weight")
POSITIONS: list[dict[str, Any]] = [{"position": name} for name in ("learned", "sinusoidal", "alibi", "none")]


def _row_by_row(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    rows = [model(row[valid.bool()][None], use_cache=False).logits[0] for row, valid in zip(ids, mask, strict=True)]
    return torch.cat(rows)


@pytest.mark.sampled(10)
@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in ARCHITECTURES), *(("llama", each) for each in POSITIONS)]
)
def test_padding_in_a_static_cache_without_position_ids(name: str, options: dict[str, Any]) -> None:
    model, ids = perturbed_model(name, **options), token_ids(3, TOTAL)
    for kind in ("left",) if any(model.config.windows) else ("left", "right", "middle"):
        mask, parts, end = rows_with_gaps(kind), [], 0
        cache = StaticCache(config=model.config, max_cache_len=TOTAL + 2)
        for length in (9, 1, 10, 1):
            start, end = end, end + length
            parts.append(model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache).logits)
        close(torch.cat(parts, 1)[mask.bool()], _row_by_row(model, ids, mask))


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "mla", "linformer"])
def test_a_mask_over_the_unused_slots_of_a_static_cache_is_refused(name: str) -> None:
    model, ids = perturbed_model(name), token_ids(2, 9)
    cache = StaticCache(config=model.config, max_cache_len=16)
    model(ids[:, :8], past_key_values=cache)
    mask = (torch.arange(16) < 9).long().expand(2, -1)
    with pytest.raises(ValueError, match="attention_mask: 16 columns"):
        model(ids[:, 8:], attention_mask=mask, past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "mamba2"])
def test_a_mask_over_tokens_that_is_to_be_added_is_refused(name: str) -> None:
    model, mask = perturbed_model(name), rows_with_gaps("left")
    with pytest.raises(ValueError, match="floats over tokens must be 0"):
        model(token_ids(3, TOTAL), attention_mask=additive(mask.bool()))
    close(
        model(token_ids(3, TOTAL), attention_mask=mask.float()).logits[mask.bool()],
        _row_by_row(model, token_ids(3, TOTAL), mask),
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_of_a_cache_are_chosen_and_repeated_with_all_that_it_holds(name: str) -> None:
    model, ids = perturbed_model(name), token_ids(3, TOTAL)
    whole, cache = model(ids, use_cache=False).logits, DynamicCache(config=model.config)
    model(ids[:, :9], past_key_values=cache)
    for rows in (torch.tensor([2, 0, 1]), torch.tensor([1, 1])):
        chosen = copy.deepcopy(cache)
        chosen.batch_select_indices(rows)
        close(model(ids[rows, 9:], past_key_values=chosen).logits, whole[rows, 9:])
    cache.batch_repeat_interleave(2)
    close(model(ids[:, 9:].repeat_interleave(2, 0), past_key_values=cache).logits, whole[:, 9:].repeat_interleave(2, 0))


@pytest.mark.rest
def test_experts_under_a_block_mask_of_flex_attention() -> None:
    model, ids = perturbed_model("moe"), token_ids(2, 128)
    mask = create_block_mask(lambda b, h, q, k: q >= k, 2, None, 128, 128, device="cpu")
    with torch.no_grad():
        expected = model(ids, output_router_logits=True, use_cache=False)
        model.set_attn_implementation("flex_attention")
        found = model(ids, attention_mask=mask, output_router_logits=True, use_cache=False)
    close(found.logits, expected.logits)
    close(found.aux_loss, expected.aux_loss)


def test_a_vocabulary_is_not_resized_next_to_other_tables_by_token_id() -> None:
    by_id = [name for name in EMBEDDINGS if EMBEDDINGS[name].reads_ids and "hf_arch." in EMBEDDINGS[name].__module__]
    assert len(by_id) == 4
    for name in by_id:
        model = perturbed_model("llama", embeddings=name)
        before = {key: value.shape for key, value in model.state_dict().items()}
        for asked in ({"new_num_tokens": 110}, {"new_num_tokens": 60}, {"pad_to_multiple_of": 64}):
            with pytest.raises(ValueError, match="vocab_size 97"):
                model.resize_token_embeddings(**asked)
        model.resize_token_embeddings(97)
        assert {key: value.shape for key, value in model.state_dict().items()} == before
        assert model.config.vocab_size == 97
    model = perturbed_model("llama", embeddings="smear")
    model.resize_token_embeddings(110)
    assert model(torch.full((1, 4), 109)).logits.shape[-1] == 110


@pytest.mark.parametrize("kind", [False, True], ids=["plain", "re-entrant"])
@pytest.mark.parametrize("inputs_need_gradients", [False, True])
def test_checkpointing_keeps_what_passes_through_runs_without_gradients(
    kind: bool, inputs_need_gradients: bool
) -> None:
    depth = {"type": "cycles", "high_cycles": 3, "trained": [2]}
    model = perturbed_model("mixed", mixer=["attention", "gla"], num_hidden_layers=4, depth=depth).train()
    ids = token_ids(2, 9)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}

    expected = gradients()
    model.activation_checkpointing_enable({"use_reentrant": kind})
    if inputs_need_gradients:
        model.enable_input_require_grads()
    torch.testing.assert_close(gradients(), expected)
    copy.deepcopy(model)


@pytest.mark.parametrize("depth", ["plain", "loop", {"type": "shared", "group": 1}])
def test_experts_are_balanced_over_valid_tokens_of_every_run_however_padding_is_described(depth: Any) -> None:
    model = perturbed_model("moe", num_hidden_layers=4, mixer=["attention"], ffn=["moe", "glu"], depth=depth).train()
    ids, mask = token_ids(2, TOTAL), torch.ones(2, TOTAL, dtype=torch.long)
    mask[:, 15:] = 0
    labels, positions = ids.masked_fill(mask == 0, -100), (mask.cumsum(1) - 1).clamp(min=0)
    pairs = torch.ones(TOTAL, TOTAL).tril().bool()[None, None] & mask.bool()[:, None, None]
    expected = model(ids[:, :15], labels=ids[:, :15], use_cache=False)
    for given in (
        {"attention_mask": mask},
        {"attention_mask": mask[:1]},
        {"attention_mask": pairs, "position_ids": positions},
        {"attention_mask": additive(pairs), "position_ids": positions},
        {"attention_mask": pairs[:, 0], "position_ids": positions},
        {"attention_mask": pairs[:1], "position_ids": positions},
    ):
        out = model(ids, labels=labels, use_cache=False, **given)
        close(out.aux_loss, expected.aux_loss)
        close(out.loss, expected.loss)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("case", ["zero embeddings", "zero matrices", "large matrices"])
def test_gradients_are_finite_at_the_ends_of_the_range(name: str, case: str) -> None:
    model, ids = perturbed_model(name).train(), token_ids(2, 37)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if case == "large matrices" and parameter.dim() > 1 and not key.endswith("_log"):
                parameter.mul_(20)
            elif (case == "zero embeddings" and key == "model.embed_tokens.weight") or (
                case == "zero matrices" and parameter.dim() == 2 and key not in OUTSIDE
            ):
                parameter.zero_()
    loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    assert loss.isfinite()
    assert [
        key for key, part in model.named_parameters() if part.grad is not None and not part.grad.isfinite().all()
    ] == []


@torch.no_grad()
@pytest.mark.parametrize("name", ["nsa", "moba"])
def test_among_equal_blocks_every_form_chooses_the_same(name: str) -> None:
    """Queries of zero find every block equal."""
    model, ids = perturbed_model(name), token_ids(2, 120)
    for key, parameter in model.named_parameters():
        if "q_proj" in key or "k_proj" in key:
            parameter.zero_()
    whole, cache = model(ids, use_cache=False).logits, DynamicCache(config=model.config)
    close(torch.cat([model(part, past_key_values=cache).logits for part in ids.split([40, 1, 79], 1)], 1), whole)


ATTENDS_TO_ALL: dict[str, Any] = {"mixer": ["gla", "attention"], "num_hidden_layers": 2}
SEES_FOUR: dict[str, Any] = {**ATTENDS_TO_ALL, "mixer": ["gla", {"type": "attention", "window": 4}]}


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize(
    ("name", "own", "other"),
    [
        ("llama", {}, {"sliding_window": 4}),
        ("llama", {"sliding_window": 6}, {"sliding_window": 4}),
        ("mixed", ATTENDS_TO_ALL, SEES_FOUR),
    ],
)
def test_a_cache_that_forgets_what_the_model_sees_is_refused(name: str, own: Any, other: Any, static: bool) -> None:
    model, ids = perturbed_model(name, **own), token_ids(2, TOTAL)

    def fed(cache: Any) -> Tensor:
        return torch.cat([model(part, past_key_values=cache).logits for part in ids.split([9, 1, 10, 1], 1)], 1)

    configs = [hf_arch.tiny_config(name, **each) for each in (own, other)]
    mine, smaller = (
        StaticCache(each, max_cache_len=TOTAL) if static else DynamicCache(config=each) for each in configs
    )
    close(fed(mine), model(ids, use_cache=False).logits)
    with pytest.raises(ValueError, match=r"past_key_values: layer \d keeps the last 4 tokens"):
        fed(smaller)


@torch.no_grad()
def test_a_window_that_is_set_after_the_model_was_made_is_refused() -> None:
    model, ids = perturbed_model("llama"), token_ids(2, TOTAL)
    model.config.sliding_window = 4
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=r"config\.sliding_window: 4 was set after the model was made with None"):
            call(ids)


@torch.no_grad()
def test_static_slots_fewer_than_the_window_are_refused_once_they_are_full() -> None:
    model, ids = perturbed_model("llama", sliding_window=16), token_ids(2, TOTAL)
    cache = StaticCache(model.config, max_cache_len=10)
    close(model(ids[:, :10], past_key_values=cache).logits, model(ids[:, :10], use_cache=False).logits)
    with pytest.raises(ValueError, match="keeps the last 10 tokens"):
        model(ids[:, 10:11], past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["attention", "gla", {"type": "attention", "window": 8}])
def test_losses_of_later_tokens_are_those_of_the_documents_alone(mixer: Any) -> None:
    losses = [{"type": "multi_token", "depth": 2}, "z_loss"]
    model = perturbed_model("mixed", mixer=[mixer], num_hidden_layers=2, losses=losses).train()
    ids, labels = token_ids(2, TOTAL), token_ids(2, TOTAL)
    labels[:, [0, *torch.tensor(LENGTHS[:-1]).cumsum(0)]] = -100

    def added(ids: Tensor, labels: Tensor, **given: Any) -> Tensor:
        count = (labels[:, 1:] != -100).sum() if "num_items_in_batch" not in given else given.pop("num_items_in_batch")
        model(ids, labels=labels, use_cache=False, num_items_in_batch=count, **given)
        return torch.stack(list(model.auxiliary_losses.values()))

    count = (labels[:, 1:] != -100).sum()
    pieces = [
        added(part, its, num_items_in_batch=count)
        for part, its in zip(ids.split(LENGTHS, 1), labels.split(LENGTHS, 1), strict=True)
    ]
    for given in ways().values():
        close(added(ids, labels, **given), torch.stack(pieces).sum(0))
    mask = (torch.arange(TOTAL) > 5).long().expand(2, -1)
    labels[:, :7] = -100
    alone = added(ids[:, 6:], labels[:, 6:])
    pairs = torch.ones(TOTAL, TOTAL).tril().bool()[None, None] & mask.bool()[:, None, None]
    for padding in (mask, mask.bool(), pairs, additive(pairs)):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        close(added(ids, labels, attention_mask=padding, position_ids=positions), alone)
