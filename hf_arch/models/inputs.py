"""What a model is called with, checked and in one form, before any layer runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from ..layers.compat import uses_flash_attention
from ..layers.documents import ARGUMENTS, Call, Documents, flash_arguments, read_documents
from .cache_checks import check_windows, fitting_cache, is_paged, remember_documents, remember_model
from .keywords import check_keywords
from .serving import check_continuous_batching


class Inputs(NamedTuple):
    """See `read_inputs`; `past` counts the tokens in the cache, `kwargs` are those for the layers."""

    documents: Documents
    cache: Any
    past: Any
    kwargs: dict[str, Any]


def embedded(embed: nn.Module, ids: Any, vocab_size: int) -> Tensor:
    """The embeddings [B, T, D] of token ids [B, T].

    Raises:
        ValueError: anything else, or an id that is no token (on a CPU; a GPU stops by itself).
    """
    if not isinstance(ids, Tensor):
        raise ValueError(f"input_ids: a {type(ids).__name__} is not allowed; pass an int64 tensor [B, T]")
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"input_ids: {ids.dtype} is not allowed; use torch.int64")
    if ids.dim() != 2:
        raise ValueError(f"input_ids: shape {list(ids.shape)} is not allowed; pass [B, T], as one row of [1, T]")
    if not torch.compiler.is_compiling():
        _require_some(ids)
    try:
        return embed(ids)
    except IndexError:
        wrong = ids[(ids < 0) | (ids >= vocab_size)]
        if not wrong.numel():
            raise
        raise ValueError(
            f"input_ids: {int(wrong[0])} is not allowed; use ids of tokens, 0 to {vocab_size - 1}"
        ) from None


def _require_some(ids: Tensor) -> None:
    for size, what in zip(ids.shape[:2], ("rows", "tokens"), strict=True):
        if not size:
            raise ValueError(f"input_ids: 0 {what} are not allowed; pass one at least")


def read_inputs(
    model: Any, embeds: Tensor, attention_mask: Any, position_ids: Any, cache: Any, use_cache: Any, kwargs: dict
) -> Inputs:
    """The documents, the cache and the arguments for the layers of a call with `embeds` [B, T, D].

    Args:
        model: an ArchModel. The others are what its forward was given.

    Raises:
        ValueError: see `documents.py`, `cache_checks.py` and `keywords.py`.
    """
    layer_types, config = model._layer_types, model.config
    if not torch.compiler.is_compiling():
        model.made_with.check_call(config)
    if embeds.dim() != 3 or embeds.shape[-1] != config.hidden_size:
        raise ValueError(f"inputs_embeds: shape {list(embeds.shape)} is not allowed; pass [B, T, {config.hidden_size}]")
    _require_some(embeds)
    batch, length = embeds.shape[:2]
    if is_paged(cache) or is_paged(kwargs.get("cache")):  # continuous batching says everything in its own way
        check_continuous_batching(config)
        return Inputs(Documents(attention_mask, None, position_ids), cache, 0, kwargs)
    if use_cache and cache is None:
        cache = DynamicCache(config=config)
    cache = fitting_cache(cache, config, layer_types, batch, length)
    if cache is not None:
        check_windows(cache, [model._windows[layer] for layer in model.plan], length)
    past = 0 if cache is None else cache.get_seq_length()
    if isinstance(past, Tensor) and length > 1 and not torch.compiler.is_compiling():
        past = int(past)
    remember_model(cache, past, model.states)
    kwargs = check_keywords(type(model).__name__, kwargs, (past, length, embeds.device))
    told = {name: kwargs.pop(name) for name in ARGUMENTS if name in kwargs}
    call = Call(batch, length, past, embeds.device)
    # Layers that ask for key positions read documents and padding from them, as those with states do from the layout.
    has_states = any(model.mask_plan.asks_keys) or not {"full_attention", "sliding_attention"}.issuperset(layer_types)
    documents = read_documents(call, attention_mask, position_ids, told, has_states=has_states)
    segment_ids, mask = documents.segment_ids, documents.attention_mask
    remember_documents(cache, call.is_first, segment_ids, goes_on=position_ids is not None)
    if segment_ids is not None and uses_flash_attention(config):
        kwargs |= flash_arguments(segment_ids, mask)
        documents = documents._replace(attention_mask=None)
    return Inputs(documents, cache, past, kwargs)
