"""Which masks the layers of a model need of a batch: one for each kind of layer, not one for each layer.

Legend: B batch, T tokens of the call, S keys, H heads, C and W a block of queries and its keys (`Band`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ..layers.bands import Band
from ..layers.compat import CACHE_ARGUMENT, create_causal_mask
from ..layers.key_positions import KeyPositions, key_positions
from ..layers.positions import alibi_slopes
from .layer_masks import same_document, sliding_mask, window_band


class MaskPlan:
    """Read once from the config and the layers; it holds no tensors and no modules.

    Args:
        plan: the layer of each run. layers: the blocks. biased: whether the model's position biases scores (ALiBi).
    """

    def __init__(self, config: Any, plan: Sequence[int], layers: Iterable[Any], *, biased: bool):
        self._plan, self._windows, self._kinds = plan, config.windows, config.layer_kinds
        self._keys = [self._mask_key(index) for index in range(config.num_hidden_layers)]
        self._runs = self._runs_of_masks(config)
        mixers = [layer.mixer for layer in layers]
        self.takes_bands = [mixer.takes_bands() for mixer in mixers]
        # Which layers bias their attention scores, and by the slopes of how many heads.
        self._bias_heads = [mixer.num_heads if biased and _takes_position_bias(mixer) else None for mixer in mixers]
        self.asks_keys = [mixer.needs_key_positions(config, options) for mixer, options in config.mixer_specs]

    def _mask_key(self, index: int) -> str:
        """The name of a layer's mask in what `masks` gives."""
        kind, window = self._kinds[index], self._windows[index]
        if kind not in ("full_attention", "sliding_attention", "hybrid", "hybrid_sliding"):
            return kind
        return "full_attention" if window is None else f"sliding_attention:{window}"

    def _runs_of_masks(self, config: Any) -> dict[str, int]:
        """The run whose cache entry says how many keys a mask is over, by the mask's name; one that fills its entry."""
        runs: dict[str, int] = {}
        for run, index in enumerate(self._plan):
            mixer, given = config.mixer_specs[index]
            if mixer.fills_cache(config, given):
                runs.setdefault(self._keys[index], run)
        return runs

    def masks(
        self,
        config: Any,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        segment_ids: Tensor | None = None,
        prefix: Tensor | None = None,
        *,
        bands: bool = False,
    ) -> dict[str, Any]:
        """One mask per kind of layer (`full_attention`, `sliding_attention:<window>`), and the 2-D padding mask of
        this call. With `bands`, kinds with a window may have a `Band` (`band:<kind>`), and then a mask over all pairs
        only where a layer needs that."""
        masks: dict[str, Any] = {}
        cache = past_key_values
        common: dict[str, Any] = {
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            CACHE_ARGUMENT: cache,
            "and_mask_function": None if segment_ids is None else same_document(segment_ids),
        }
        for key, run in self._runs.items():
            # A static layer's unused slots must be masked in a single step too; transformers sees to it only where
            # every layer of the cache is static, which recurrent ones are not.
            static = cache is not None and run < len(cache.layers) and cache.layers[run].is_compileable
            common["allow_is_causal_skip"] = not (static and inputs_embeds.shape[1] == 1)
            if key == "full_attention":
                masks[key] = create_causal_mask(config=config, layer_idx=run, block_sequence_ids=prefix, **common)
            elif key.startswith("sliding_attention"):
                window = self._windows[self._plan[run]]
                assert window is not None
                takers = [taken for index, taken in enumerate(self.takes_bands) if self._keys[index] == key]
                band = window_band(window, config, run, common, segment_ids) if bands and any(takers) else None
                if band is not None:
                    masks[f"band:{key}"] = band
                if band is None or not all(takers):
                    masks[key] = sliding_mask(config.with_window(window), config, run, common)
        masks |= self._key_positions(inputs_embeds, attention_mask, cache, segment_ids)
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            masks["padding"] = attention_mask[:, -inputs_embeds.shape[1] :].to(inputs_embeds.device)
        return masks

    def mask_of(self, index: int, masks: dict[str, Any]) -> Any:
        """The mask of layer `index`, None for none."""
        key = self._keys[index]
        band = masks.get(f"band:{key}") if self.takes_bands[index] else None
        return masks.get(key) if band is None else band

    def _key_positions(
        self, embeds: Tensor, attention_mask: Any, cache: Cache | None, segment_ids: Tensor | None
    ) -> dict[str, KeyPositions]:
        """Where the keys of each kind of layer are, for the layers that ask, as entries of `masks`."""
        made: dict[str, KeyPositions] = {}
        mask = attention_mask if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 else None
        batch, length = embeds.shape[:2]
        for index in self._plan:
            mask_key = self._keys[index]
            key, run = f"keys:{mask_key}", self._runs[mask_key]
            if not self.asks_keys[index] or key in made:
                continue
            total, offset = cache.get_mask_sizes(length, run) if cache is not None else (length, 0)
            past = cache.get_query_offset(run) if cache is not None else 0
            sizes, window = (total, offset, past), self._windows[index]
            made[key] = key_positions((batch, length), sizes, mask, segment_ids, window, embeds.device)
        return made

    def keys_of(self, index: int, masks: dict[str, Any]) -> KeyPositions | None:
        """The entry of layer `index`, None where it does not ask."""
        if not self.asks_keys[index]:
            return None
        found = masks.get(f"keys:{self._keys[index]}")
        if found is None:
            raise ValueError(
                f"attention_mask: finished masks do not say where the keys are, which layer {index} needs; pass a mask "
                "over tokens [B, S]"
            )
        return found

    def position_biases(
        self, embeds: Tensor, attention_mask: Any, cache: Cache | None, masks: dict[str, Any]
    ) -> list[Tensor | None]:
        """ALiBi's bias [B, H, T, S] of each layer (shared by equal layers), [1, H, C, W] for one with a `Band`, None
        where it does not apply."""
        made: dict[Any, Tensor] = {}
        biases: list[Tensor | None] = []
        for index, heads in enumerate(self._bias_heads):
            if heads is None:
                biases.append(None)
                continue
            band = self.mask_of(index, masks)
            if isinstance(band, Band):
                kind = (heads, self._keys[index])
                if kind not in made:
                    slopes = alibi_slopes(heads, embeds.device)[None, :, None, None]
                    made[kind] = (slopes * band.distances()).to(embeds.dtype)
                biases.append(made[kind])
                continue
            length = embeds.shape[1]
            run = self._runs[self._keys[index]]
            total, offset = cache.get_mask_sizes(length, run) if cache is not None else (length, 0)
            past = cache.get_query_offset(run) if cache is not None else 0
            key = (heads, total, str(offset))
            if key not in made:
                queries = torch.arange(length, device=embeds.device) + past
                keys = torch.arange(total, device=embeds.device) + offset
                if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
                    counted = attention_mask.to(embeds.device).long().cumsum(-1)
                    reached = keys.clamp(max=counted.shape[1] - 1)  # behind it are a static cache's unused slots
                    distance = counted[:, None, reached] - counted[:, -length:, None]
                else:
                    distance = (keys[None, :] - queries[:, None])[None]
                slopes = alibi_slopes(heads, embeds.device)[None, :, None, None]
                bias = (slopes * distance[:, None]).to(embeds.dtype)
                made[key] = bias.expand(embeds.shape[0], -1, -1, -1)  # flex attention indexes it by row
            biases.append(made[key])
        return biases


def _takes_position_bias(mixer: Any) -> bool:
    """Whether it adds the config's bias to its scores: it has the softmax product and no position of its own."""
    return hasattr(mixer, "product") and getattr(mixer.options, "position", None) is None
