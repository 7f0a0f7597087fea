"""Keys and values with room behind them are those that transformers' cache joins, whatever is done to the cache."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from hf_arch.layers.growing_keys import LEAST_ROOM, append_keys
from tests.suite.models import perturbed_model, token_ids


def new_tokens(length: int, rows: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 3, length, 4), torch.randn(rows, 3, length, 6)


def joined(cache: Any, key: Tensor, value: Tensor, index: int) -> tuple[Tensor, Tensor]:
    return cache.update(key, value, index)


def grown(cache: Any, key: Tensor, value: Tensor, index: int) -> tuple[Tensor, Tensor]:
    return append_keys(cache, index, key, value)


def stepped(append: Callable[..., tuple[Tensor, Tensor]], cache: Any, lengths: list[int], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    for length in lengths:
        for index in range(2):
            held = append(cache, *new_tokens(length), index)
            assert held[0] is cache.layers[index].keys
    return cache


def contents(cache: Any) -> list[Tensor]:
    return [x.clone() for layer in cache.layers for x in (layer.keys, layer.values)]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@torch.no_grad()
def test_what_a_layer_holds_is_what_a_join_gives() -> None:
    lengths = [5, *[1] * (LEAST_ROOM + 3), 4, 1]
    caches = [stepped(append, DynamicCache(), lengths) for append in (joined, grown)]
    assert same(*map(contents, caches))
    layer = caches[1].layers[1]
    assert layer.keys.untyped_storage().nbytes() > layer.keys.nbytes, "no room was made"


@torch.no_grad()
def test_a_step_copies_nothing_that_is_held() -> None:
    cache = stepped(grown, DynamicCache(), [5, 1, 1])
    address = cache.layers[0].keys.data_ptr()
    stepped(grown, cache, [1, 1])
    assert cache.layers[0].keys.data_ptr() == address


CHANGES = {
    "crop": lambda cache: cache.crop(-2),
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
    "repeat and choose": lambda cache: (
        cache.batch_repeat_interleave(2),
        cache.batch_select_indices(torch.tensor([3, 0])),
    ),
    "reset": lambda cache: cache.reset(),
}


@torch.no_grad()
@pytest.mark.parametrize("change", list(CHANGES))
def test_a_changed_cache_goes_on_as_it_is(change: str) -> None:
    found = []
    for append in (joined, grown):
        cache = stepped(append, DynamicCache(), [5, 1, 1, 1])
        CHANGES[change](cache)
        found.append(contents(stepped(append, cache, [1, 1, 2, 1], seed=1)))
    assert same(*found)


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: _shallow(cache)], ids=["deep", "shallow"])
def test_two_copies_of_a_cache_go_on_apart(copied: Callable[[Any], Any]) -> None:
    cache = stepped(grown, DynamicCache(), [5, 1, 1])
    kept, before = [layer.keys for layer in cache.layers], contents(cache)
    other = copied(cache)
    found = [contents(stepped(grown, each, [1, 1, 1], seed)) for seed, each in ((1, cache), (2, other))]
    assert same(kept, before[::2]), "what somebody kept was changed"
    again = [contents(stepped(joined, stepped(joined, DynamicCache(), [5, 1, 1]), [1, 1, 1], seed)) for seed in (1, 2)]
    assert all(same(*pair) for pair in zip(found, again, strict=True))
    assert same(contents(cache), again[0]), "the copy wrote into its original"


def _shallow(cache: Any) -> Any:
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


def test_a_graph_through_the_cache_has_its_gradient() -> None:
    cache = DynamicCache()
    first = new_tokens(2)
    key = first[0].requires_grad_()
    append_keys(cache, 0, *first)
    for _ in range(3):
        held = append_keys(cache, 0, *new_tokens(1))
    held[0].sum().backward()
    assert torch.equal(key.grad, torch.ones_like(key))


def test_a_cache_of_inference_tensors_goes_on_outside() -> None:
    with torch.inference_mode():
        cache = stepped(grown, DynamicCache(), [5, 1, 1])
    with torch.no_grad():
        stepped(grown, cache, [1, 1])
    expected = stepped(joined, DynamicCache(), [5, 1, 1])
    stepped(joined, expected, [1, 1])
    assert same(contents(cache), contents(expected))


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gqa", "mla", "forgetting_transformer", "path_attention"])
def test_a_model_steps_to_the_same_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, steps = perturbed_model(name), token_ids(2), []
    for append in (append_keys, lambda cache, index, key, value: cache.update(key, value, index)):
        monkeypatch.setattr("hf_arch.layers.contract.append_keys", append)
        cache = model(ids[:, :-4], use_cache=True).past_key_values
        steps.append([model(step, past_key_values=cache).logits for step in ids[:, -4:].split(1, 1)])
    # A forget gate is read out of wider rows, whose steps in memory decide how its sums are ordered.
    within = 1e-6 if name == "forgetting_transformer" else 0
    for pair in zip(*steps, strict=True):
        torch.testing.assert_close(*pair, atol=within, rtol=within)
