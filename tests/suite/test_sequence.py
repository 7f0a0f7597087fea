"""What a sequence model must keep to: causality, caches, padding, packed documents. For every registered
architecture."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from tests.suite.models import ARCHITECTURES, ROUNDING_MOVES, close, perturbed_model, token_ids

pytestmark = pytest.mark.parametrize("name", ARCHITECTURES)


@torch.no_grad()
def test_later_tokens_leave_earlier_logits_alone(name):
    model, ids = perturbed_model(name), token_ids(length=41)
    before = model(ids, use_cache=False).logits
    for position in (1, 17, 40):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 97
        after = model(changed, use_cache=False).logits
        if name in ROUNDING_MOVES:
            torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=1e-5)
        else:
            assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.equal(after[:, position:], before[:, position:])


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[20, 1], [1] * 21, [7, 6, 1, 1, 6], [3, 18]], ids=str)
def test_chunks_with_a_cache_equal_the_whole(name, chunks):
    model, ids = perturbed_model(name), token_ids()
    whole = model(ids, use_cache=False).logits
    cache = DynamicCache(config=model.config)
    parts = [model(part, past_key_values=cache).logits for part in ids.split(chunks, dim=1)]
    close(torch.cat(parts, 1), whole)
    assert cache.get_seq_length() == ids.shape[1]


@torch.no_grad()
@pytest.mark.parametrize("with_positions", [False, True], ids=["no_positions", "positions"])
def test_left_padding_changes_nothing(name, with_positions):
    model, ids = perturbed_model(name), token_ids(3)
    padding = [0, 5, 11]
    rows = [torch.cat([torch.zeros(n, dtype=torch.long), row[: 21 - n]]) for n, row in zip(padding, ids, strict=True)]
    mask = torch.stack([(torch.arange(21) >= n).long() for n in padding])
    positions = (mask.cumsum(1) - 1).clamp(min=0) if with_positions else None
    logits = model(torch.stack(rows), attention_mask=mask, position_ids=positions, use_cache=False).logits
    for n, row, out in zip(padding, ids, logits, strict=True):
        close(out[n:], model(row[None, : 21 - n], use_cache=False).logits[0])


@torch.no_grad()
def test_right_padding_changes_nothing(name):
    model, ids = perturbed_model(name), token_ids(2)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    logits = model(ids, attention_mask=mask, use_cache=False).logits
    close(logits[0], model(ids[:1], use_cache=False).logits[0])
    close(logits[1, :9], model(ids[1:, :9], use_cache=False).logits[0])


@torch.no_grad()
def test_right_padded_prefill_then_steps(name):
    """Rows of unequal length, padded on the right, then decoded on: the state is that of the last valid token."""
    model, ids = perturbed_model(name), token_ids(2, 14)
    if model.config.sliding_window or any(model.config.windows):
        pytest.skip("a sliding cache keeps slots, so that padding inside its window pushes valid tokens out")
    lengths, extra = [10, 6], 4
    whole = [model(row[None, : n + extra], use_cache=False).logits[0] for n, row in zip(lengths, ids, strict=True)]
    mask = torch.stack([(torch.arange(10) < n).long() for n in lengths])
    cache = DynamicCache(config=model.config)
    prefill = model(ids[:, :10] * mask, attention_mask=mask, past_key_values=cache).logits
    steps = []
    for step in range(extra):
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        token = torch.stack([row[n + step] for n, row in zip(lengths, ids, strict=True)])[:, None]
        steps.append(model(token, attention_mask=mask, past_key_values=cache).logits)
    for index, n in enumerate(lengths):
        close(torch.cat([prefill[index, :n], *[step[index] for step in steps]]), whole[index])


@torch.no_grad()
def test_left_padded_chunk_after_a_filled_cache(name):
    """A second chunk that is padded in one row must not let the padding into that row's state."""
    model, ids = perturbed_model(name), token_ids(2, 16)
    if any(model.config.windows):
        pytest.skip("a sliding cache keeps slots, so that padding inside its window pushes valid tokens out")
    cache = DynamicCache(config=model.config)
    model(ids[:, :7], past_key_values=cache)
    second, mask = ids[:, 7:].clone(), torch.ones(2, 16, dtype=torch.long)
    second[1] = torch.cat([torch.zeros(3, dtype=torch.long), ids[1, 7:13]])
    mask[1, 7:10] = 0
    logits = model(second, attention_mask=mask, past_key_values=cache).logits
    close(logits[0], model(ids[:1], use_cache=False).logits[0, 7:])
    close(logits[1, 3:], model(ids[1:, :13], use_cache=False).logits[0, 7:])


def _packed(ids, lengths):
    return torch.cat([torch.arange(n) for n in lengths])[None].expand(ids.shape[0], -1)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[8, 13], [1, 5, 1, 14], [33, 2, 30]], ids=str)
def test_packed_documents_equal_separate_ones(name, lengths):
    model, ids = perturbed_model(name), token_ids(2, sum(lengths))
    packed = model(ids, position_ids=_packed(ids, lengths), use_cache=False).logits
    separate = [model(part, use_cache=False).logits for part in ids.split(lengths, 1)]
    close(packed, torch.cat(separate, 1))


@pytest.mark.sampled(10)
def test_packed_gradients_equal_separate_ones(name):
    model, lengths = perturbed_model(name), [9, 12]
    ids = token_ids(1, sum(lengths))
    weights = torch.randn(1, sum(lengths), 97, generator=torch.Generator().manual_seed(5))
    (model(ids, position_ids=_packed(ids, lengths), use_cache=False).logits * weights).sum().backward()
    packed = {key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    for part, weight in zip(ids.split(lengths, 1), weights.split(lengths, 1), strict=True):
        (model(part, use_cache=False).logits * weight).sum().backward()
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            close(packed[key], parameter.grad)
