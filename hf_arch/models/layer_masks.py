"""Attention masks of documents and windows, by transformers' mask functions.

Legend: B batch, T tokens of the call, S keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers.bands import Band, build_band, pays
from ..layers.compat import (
    CACHE_ARGUMENT,
    and_masks,
    attention_implementation,
    create_causal_mask,
    create_sliding_window_causal_mask,
    uses_flash_attention,
)
from ..layers.documents import require
from ..layers.pair_masks import within_window


def sliding_mask(window_config: Any, config: Any, index: int, common: dict[str, Any]) -> Any:
    """The mask of layer `index`, which has a window.

    Args:
        window_config: the model's config with the window of this layer. config: the model's own.
        common: arguments of transformers' mask makers.
    """
    window, cache, mask = window_config.sliding_window, common[CACHE_ARGUMENT], common["attention_mask"]
    past = 0 if cache is None else cache.get_seq_length(index)
    over_gaps = window_over_gaps(mask, window, past, common["inputs_embeds"].shape[1])
    if over_gaps is not None and not uses_flash_attention(config):  # flash attention unpads
        documents = common["and_mask_function"]
        both = over_gaps if documents is None else and_masks(over_gaps, documents)
        return create_causal_mask(config=config, layer_idx=index, **{**common, "and_mask_function": both})
    made = create_sliding_window_causal_mask(config=window_config, layer_idx=index, **common)
    if isinstance(mask, Tensor) and mask.dim() == 4:  # it came back as it was
        return within_window(mask, window, cache, index)
    return made


def window_band(
    window: int, config: Any, index: int, common: dict[str, Any], segment_ids: Tensor | None
) -> Band | None:
    """The mask of layer `index`, which has a window, for attention in blocks; None where the mask over all pairs has to
    be made: for other attention functions than sdpa, off the CPU, in a graph, over static caches, for finished masks,
    for padding between valid tokens, and where it is as fast."""
    embeds, mask, cache = common["inputs_embeds"], common["attention_mask"], common[CACHE_ARGUMENT]
    if attention_implementation(config) != "sdpa" or embeds.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    length = embeds.shape[1]
    total, offset = (length, 0) if cache is None else cache.get_mask_sizes(length, index)
    past = 0 if cache is None else cache.get_query_offset(index)
    # Anything else (slots of a static cache, a length on the device) does not end with this call's tokens.
    if not isinstance(past, int) or past + length != offset + total or not pays(window, length, total):
        return None
    if segment_ids is not None and (past or segment_ids.shape[1] != total):
        return None
    valid = None
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] != past + length:
            return None
        valid = mask.bool()
        begins = F.pad(~valid, (1, 0), value=True)[:, :-1] & valid
        gap = (begins.sum(1) > 1) | ((past > 0) & ~valid[:, -1])
        if bool(gap.any()):
            return None
        valid = None if bool(valid.all()) else valid[:, offset:]
    return build_band(window, length, total, valid, segment_ids, embeds.device)


def same_document(segment_ids: Tensor) -> Callable[..., Tensor]:
    """A mask function of transformers: keys in the document of the query. The slots of a static cache lie behind the
    tokens of [B, T] and are never seen."""
    last = segment_ids.shape[1] - 1

    def see(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return segment_ids[batch, query.clamp(max=last)] == segment_ids[batch, key.clamp(max=last)]

    return see


def window_over_gaps(mask: Any, window: int, past: Any, length: int) -> Callable[..., Tensor] | None:
    """A mask function for a window of `window` valid tokens, where padding lies between them; None without.

    Args:
        mask: [B, S], or any other (then None).
        past: tokens in the cache. length: of the call.

    Raises:
        ValueError: such padding in a filled cache, which keeps slots: padding has pushed valid tokens out.
    """
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    valid = mask.bool()
    counted = valid.cumsum(1)
    gap = ~valid & (counted > 0)
    if not (isinstance(past, int) and past == 0):
        message = "attention_mask: a window's cache does not support padding after a row's first token; pad on the left"
        require(~gap[:, -(window + length) :].any(), message)
        return None
    if not torch.compiler.is_compiling() and not bool(gap.any()):
        return None
    last = mask.shape[1] - 1

    def see(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return counted[batch, query.clamp(max=last)] - counted[batch, key.clamp(max=last)] < window

    return see
