"""Whether a cache is one for this model, said in a line before anything runs; and what it remembers of documents."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    LinearAttentionCacheLayerMixin,
    StaticLayer,
    StaticSlidingWindowLayer,
)
from transformers.generation.continuous_batching import PagedAttentionCache

from ..layers.compat import attention_implementation
from ..layers.documents import require
from ..layers.state import RECURRENT, RecurrentStateLayer

REMEDY = "use DynamicCache(config=model.config)"
_DOCUMENTS = "hfa_holds_documents"
_STATES = "hfa_states"
_KEYS_ALONE = frozenset({"full_attention", "sliding_attention"})


def is_paged(cache: Any) -> bool:
    """Whether it is the cache of continuous batching, which brings its own masks."""
    return isinstance(cache, PagedAttentionCache)


def fitting_cache(cache: Any, config: Any, layer_types: list[str], batch: int, length: int) -> Any:
    """`cache`, once it is known to fit; an empty `DynamicCache()` gets the layers of this model.

    Args:
        cache: a cache of transformers, or None.
        config: of the model, with one entry of `layer_types` a layer.
        batch, length: of the call.

    Raises:
        ValueError: anything else than a cache, layers of another kind or number, other rows, too few slots, or
            static slots under flex attention.
    """
    if cache is None:
        return None
    if not isinstance(cache, Cache) or isinstance(cache, EncoderDecoderCache):
        raise ValueError(f"past_key_values: a {type(cache).__name__} is not supported; {REMEDY}")
    if not cache.layers and type(cache) is DynamicCache:
        # It would grow layers of keys and values, whatever the model's are.
        cache.layers = DynamicCache(config=config).layers
        cache.layer_class_to_replicate = None
    grows = not cache.layers and cache.layer_class_to_replicate is not None and _all_attention(layer_types)
    if len(cache.layers) != len(layer_types) and not grows:
        raise ValueError(f"past_key_values: {len(cache.layers)} layers, but the model has {len(layer_types)}; {REMEDY}")
    for index, (layer, kind) in enumerate(zip(cache.layers, layer_types, strict=False)):
        plain = type(layer) is DynamicLayer and kind in _KEYS_ALONE  # the most common, of which a step sees one a layer
        if not plain and not _fits(layer, kind):
            wanted = "keys and values" if kind in ("full_attention", "sliding_attention") else "a recurrent state"
            raise ValueError(
                f"past_key_values: layer {index} is a {type(layer).__name__}, but the model needs one for {wanted}; "
                f"{REMEDY}. Prefix tuning, which fills keys and values, needs a model of attention layers alone"
            )
        rows = _rows(layer)
        if rows is not None and rows != batch:
            raise ValueError(f"past_key_values: it holds {rows} rows, but this call has {batch}; use a new cache")
        if plain:
            continue
        if isinstance(layer, StaticLayer) and attention_implementation(config) == "flex_attention":
            # Single steps see the wrong slots there, in transformers' own models too.
            raise ValueError(
                "past_key_values: a static cache is not supported under attn_implementation flex_attention; "
                "use sdpa or eager, or a DynamicCache"
            )
        if isinstance(layer, StaticLayer) and not isinstance(layer, StaticSlidingWindowLayer):
            _check_slots(layer, length)
        if isinstance(layer, LinearAttentionCacheLayerMixin) and isinstance(layer, DynamicLayer):
            _choose_rows_of_states_too(layer)
    return cache


def check_windows(cache: Any, windows: list[int | None], length: int) -> None:
    """Refuse a cache that forgets what a layer still sees.

    Args:
        windows: of the model's runs in order, None where all earlier tokens are seen.
        length: tokens of the call.

    Raises:
        ValueError: a layer for a smaller window, of another config or of this one changed since the model was made, or
            static slots that are fewer than the window and the tokens.
    """
    for index, (layer, window) in enumerate(zip(cache.layers, windows, strict=False)):
        if type(layer) is DynamicLayer or not isinstance(layer, (DynamicSlidingWindowLayer, StaticSlidingWindowLayer)):
            continue
        kept = getattr(layer, "sliding_window", None) or layer.max_cache_len
        if window is not None and kept >= window:
            continue
        if isinstance(layer, StaticSlidingWindowLayer) and layer.cumulative_length_int + length <= kept:
            continue
        raise ValueError(
            f"past_key_values: layer {index} keeps the last {kept} tokens, but the model sees "
            f"{'all' if window is None else window} there; use a cache of the config that the model was made with"
        )


def states_of(config: Any) -> dict[str, str]:
    """What decides what a model of `config` keeps in a cache, by the name under which an error says it."""
    layers = {
        f"the mixer of layer {index}": str(mixer.effective(config, options))
        for index, (mixer, options) in enumerate(config.mixer_specs)
    }
    return {"hidden_size": str(config.hidden_size), **layers}


def remember_model(cache: Any, past: Any, states: dict[str, str]) -> None:
    """Refuse a cache that a model of another config has filled: its states mean something else here.

    Args:
        cache: of the call, or None. past: the tokens in it; where they are 0, it is filled by this model now.
        states: `states_of` the model.
    """
    if cache is None or isinstance(past, Tensor) or torch.compiler.is_compiling():
        return
    held = getattr(cache, _STATES, None)
    if held is states:
        return
    if past and held is not None and held != states:
        name = next(name for name in {**states, **held} if states.get(name) != held.get(name))
        raise ValueError(f"past_key_values: a model whose config differs ({name}) has filled it; use a cache for each")
    setattr(cache, _STATES, states)


def remember_documents(cache: Any, is_first: bool, starts: Tensor | None, *, goes_on: bool) -> None:
    """Refuse a cache that was filled with several documents: its keys and its states disagree on what came before.
    Where every layer keeps states alone, the last document goes on from the positions that the call gives.

    Args:
        cache: of the call, or None.
        is_first: whether it is empty; then what it is filled with now is remembered.
        starts: [B, T], the documents of this call where it has several, else None.
        goes_on: whether the call says at which positions it goes on.
    """
    if cache is None:
        return
    if not is_first:
        held = getattr(cache, _DOCUMENTS, None)
        states_alone = all(isinstance(layer, RecurrentStateLayer) for layer in cache.layers)
        if held is not None and not (goes_on and states_alone):
            require(~held, "past_key_values: it holds packed documents and cannot be continued; use a cache for each")
    elif starts is not None:
        setattr(cache, _DOCUMENTS, (starts != starts[:, :1]).any())
    elif hasattr(cache, _DOCUMENTS):
        setattr(cache, _DOCUMENTS, None)


def _all_attention(layer_types: list[str]) -> bool:
    return _KEYS_ALONE.issuperset(layer_types)


def _fits(layer: Any, kind: str) -> bool:
    if kind == RECURRENT:
        return isinstance(layer, RecurrentStateLayer)
    has_states, has_keys = isinstance(layer, LinearAttentionCacheLayerMixin), hasattr(layer, "keys")
    return has_keys and has_states == (kind not in _KEYS_ALONE)


def _rows(layer: Any) -> int | None:
    """The rows that a filled layer holds, None for an empty one."""
    keys = getattr(layer, "keys", None)
    if isinstance(keys, Tensor) and keys.dim() == 4 and keys.shape[-2] > 0:
        return keys.shape[0]
    if isinstance(layer, RecurrentStateLayer) and layer.cumulative_length:
        for states in (layer.recurrent_states, layer.conv_states):
            for state in states.values():
                if state is not None:
                    return state.shape[0]
    return None


def _choose_rows_of_states_too(layer: Any) -> None:
    """transformers' own layers with keys and states repeat and choose the rows of their keys alone; mended once."""
    if "batch_select_indices" not in layer.__dict__:
        layer.batch_repeat_interleave = partial(_repeat_rows, layer)
        layer.batch_select_indices = partial(_select_rows, layer)


def _repeat_rows(layer: Any, repeats: int) -> None:
    DynamicLayer.batch_repeat_interleave(layer, repeats)
    _map_states(layer, lambda state: state.repeat_interleave(repeats, dim=0))


def _select_rows(layer: Any, indices: Tensor) -> None:
    DynamicLayer.batch_select_indices(layer, indices)
    _map_states(layer, lambda state: state[indices])


def _map_states(layer: Any, change: Callable[[Tensor], Tensor]) -> None:
    for states in (layer.recurrent_states, layer.conv_states):
        states.update({index: change(state) for index, state in states.items() if state is not None})


def _check_slots(layer: Any, length: int) -> None:
    # A layer with states next to its keys answers -1 to `get_max_length`, as if it had no slots.
    slots, past = layer.max_cache_len, layer.get_seq_length()
    if isinstance(past, Tensor):
        # Read on a CPU alone, or once in a longer chunk: elsewhere it would wait for the device at every step.
        unread = torch.compiler.is_compiling() or (length == 1 and past.device.type != "cpu")
        past = 0 if unread else int(past)
    if past + length > slots:
        raise ValueError(
            f"past_key_values: a static cache of {slots} slots cannot hold {past} and {length} tokens; "
            f"use max_cache_len={past + length} or more"
        )
