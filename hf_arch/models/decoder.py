"""The decoder, written once: embeddings, blocks and the final norm.

What every layer needs of the batch (masks by kind, positions, rotary embeddings, documents and padding) is worked
out once per call and handed down; layers are found in the registry, so this file imports no mixer.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    MoeModelOutputWithPast,
)
from transformers.utils import logging

from ..core.registry import NORMS, POSITIONS
from ..layers.bands import Band
from ..layers.compat import (
    CACHE_ARGUMENT,
    TransformersKwargs,
    Unpack,
    capture_outputs,
    create_causal_mask,
    merge_with_config_defaults,
)
from ..layers.contract import LayerContext
from ..layers.documents import refuse_numbers
from ..layers.embeddings.base import EmbeddingOutput, value_name
from ..layers.key_positions import KeyPositions, key_positions
from ..layers.layout import build_layout, positions_from_mask
from ..layers.positions import ArchRotaryEmbedding, alibi_slopes
from ..layers.state import count_tokens
from .arguments import one_cache
from .block import DecoderLayer
from .cache_checks import is_paged
from .configuration import ArchConfig
from .inputs import read_inputs
from .layer_masks import same_document, sliding_mask, window_band
from .pretrained import ArchPreTrainedModel

logger = logging.get_logger(__name__)


@dataclass
class LossInputs:
    """Filled by a forward pass with what auxiliary losses need: the context of each layer, and the normed hidden states
    [B, T, D] at each exit but the last."""

    contexts: dict[int, LayerContext] = field(default_factory=dict)
    exits: list[Tensor] = field(default_factory=list)


class ArchModel(ArchPreTrainedModel):
    """Decoder without a head: token ids [B, T] -> hidden states [B, T, D]."""

    def __init__(self, config: ArchConfig):
        super().__init__(config)
        padding = config.pad_token_id if config.frozen_pad_embedding else None
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding)
        self.position = POSITIONS.get(config.position, "position")(config)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.embedding_norm = self._norm() if config.embedding_norm else None
        stream_class, stream_options = config.stream_spec
        self.stream = stream_class(config, stream_options)
        self.embeddings = nn.ModuleList(
            [part(config, options, slot) for slot, (part, options) in enumerate(config.embedding_specs)]
        )
        depth_class, depth_options = config.depth_spec
        self.depth = depth_class(config, depth_options)
        self.plan = depth_class.plan(config, depth_options)
        self._normed_runs = depth_class.normed_runs(config, depth_options)
        self._untrained_runs = depth_class.untrained_runs(config, depth_options)
        self._exits = depth_class.exits(config, depth_options)
        self.layers = nn.ModuleList([DecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = self._norm() if config.has_final_norm else nn.Identity()
        specs = [mixer.rotary(config, options) for mixer, options in config.mixer_specs]
        distinct = {spec.key: spec for spec in specs if spec is not None}
        self.rotary_embs = nn.ModuleList([ArchRotaryEmbedding(spec) for spec in distinct.values()])
        self._rotary_index = [None if spec is None else list(distinct).index(spec.key) for spec in specs]
        wanted = [mixer.shared(config, options) for mixer, options in config.mixer_specs]
        read = {wanted[index] for index in self.plan if index >= getattr(wanted[index], "first_layer", 0)}
        read |= set(wanted) if config.num_hidden_layers == 1 else set()
        kinds = [kind for kind in dict.fromkeys(wanted) if kind is not None and kind in read]
        self.shared = nn.ModuleList([kind.build() for kind in kinds])
        self._shared_index = [kinds.index(kind) if kind in kinds else None for kind in wanted]
        self._layer_types, self._windows = config.layer_types, config.windows
        self._kinds = config.layer_kinds
        self._mask_keys = [self._mask_key(index) for index in range(config.num_hidden_layers)]
        self._mask_runs = self._runs_of_masks()
        blocks: Any = self.layers
        # Which layers bias their attention scores, and by the slopes of how many heads.
        self._bias_heads = [
            layer.mixer.num_heads if self.position.bias and _takes_position_bias(layer.mixer) else None
            for layer in blocks
        ]
        self._takes_bands = [layer.mixer.takes_bands() for layer in blocks]
        self.asks_keys = [mixer.needs_key_positions(config, options) for mixer, options in config.mixer_specs]
        parametrization, its_options = config.parametrization_spec
        self._input_factor = parametrization.input(config, its_options)
        self.gradient_checkpointing = False
        self.post_init()

    def _norm(self) -> nn.Module:
        return NORMS.get(self.config.norm, "norm")(self.config.hidden_size, self.config.norm_eps)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast | MoeModelOutputWithPast:
        """See transformers' decoder models. Padding and packed documents may be described in any of the ways of
        `documents.py`; what is not supported is a ValueError before any layer runs. `cache` is another name of
        `past_key_values`."""
        past_key_values = one_cache(past_key_values, cache, kwargs)
        wanted: LossInputs | None = kwargs.pop("loss_inputs", None)
        if is_paged(past_key_values):  # read by the attention functions of continuous batching, under this name
            kwargs["cache"], past_key_values = past_key_values, None
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        else:
            self._require_ids()
        if self.gradient_checkpointing and self.training and (use_cache or past_key_values is not None):
            logger.warning_once(
                "gradient checkpointing runs layers twice, which a cache cannot follow; no cache is used"
            )
            use_cache, past_key_values = False, None
        inputs = read_inputs(self, inputs_embeds, attention_mask, position_ids, past_key_values, use_cache, {**kwargs})
        (attention_mask, segment_ids, position_ids), past_key_values, past, given = inputs
        position_ids = self._positions(position_ids, attention_mask, past, inputs_embeds)
        masks = attention_mask
        if not isinstance(masks, dict):
            recorded = given.get("output_attentions", getattr(self.config, "output_attentions", False))
            masks = self._masks(inputs_embeds, attention_mask, past_key_values, segment_ids, bands=not recorded)
        padding = masks.get("padding")
        layout = build_layout(padding, segment_ids, has_state=padding is not None and bool(past > 0))
        rotary = [embedding(inputs_embeds, position_ids) for embedding in self.rotary_embs]
        biases = self._position_biases(inputs_embeds, attention_mask, past_key_values, masks)
        hidden_states = self._scaled_embeddings(inputs_embeds, position_ids)
        batch = LayerContext(layout=layout, position_ids=position_ids, cache=past_key_values, attention_kwargs=given)
        hidden_states, published = self._beside_tokens(hidden_states, input_ids, batch)
        state = self.depth.run("start", self.stream.run("start", hidden_states))
        router_logits: list[Tensor] = []
        wants_router_logits = given.pop("output_router_logits", getattr(self.config, "output_router_logits", False))
        shared = [parameters() for parameters in self.shared]
        blocks: Any = [*self.layers]
        between = self.depth.run
        for run, index in enumerate(self.plan):
            layer, shared_index = blocks[index], self._shared_index[index]
            context = self._context_of(run, batch, masks, rotary, biases)
            if wanted is not None:
                wanted.contexts[index] = context
            own = None if shared_index is None else shared[shared_index][index]
            with torch.no_grad() if run in self._untrained_runs else nullcontext():
                out = layer.run(state, own, published, context)
            state = out.state
            if run in self._normed_runs:
                state = (self.norm(state[0]), *state[1:])
            if wanted is not None and run in self._exits:
                wanted.exits.append(
                    state[0] if run in self._normed_runs else self.norm(self.stream.run("finish", state))
                )
            state = between("between", state, run)
            if out.published:
                published.update(zip(layer.publishes, out.published, strict=True))
            if out.router_logits is not None:
                router_logits.append(out.router_logits)
        count_tokens(past_key_values, inputs_embeds.shape[1])
        fields = {"last_hidden_state": self.norm(self.stream.run("finish", state)), CACHE_ARGUMENT: past_key_values}
        if wants_router_logits and router_logits:
            return MoeModelOutputWithPast(**fields, router_logits=tuple(router_logits))
        return BaseModelOutputWithPast(**fields)

    def untrained_layers(self) -> list[int]:
        """The layer of each run that is computed without gradients."""
        return [self.plan[run] for run in sorted(self._untrained_runs)]

    def _require_ids(self) -> None:
        for part in self.embeddings:
            if part.reads_ids:
                raise ValueError(f"inputs_embeds: {type(part).__name__} looks tokens up by their ids; pass input_ids")

    def _context_of(
        self, run: int, batch: LayerContext, masks: dict[str, Any], rotary: list[Any], biases: Any
    ) -> LayerContext:
        """The context of one run of the plan: that of the batch, with what is made for the kind of its layer."""
        index = self.plan[run]
        rotary_index = self._rotary_index[index]
        return batch.changed(
            attention_mask=self._mask_of(index, masks),
            position_embeddings=None if rotary_index is None else rotary[rotary_index],
            position_bias=biases[index],
            keys=self._keys_of(index, masks),
            execution=run,
        )

    def _scaled_embeddings(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        """The token embeddings [B, T, D] times the config's factors, with embedded positions, dropout and norm."""
        multiplier = self.config.embedding_multiplier * self._input_factor
        hidden_states = inputs_embeds if multiplier == 1 else inputs_embeds * multiplier
        embedded_positions = self.position.embed(position_ids, hidden_states.dtype)
        if embedded_positions is not None:
            hidden_states = hidden_states + embedded_positions
        hidden_states = self.embedding_dropout(hidden_states)
        return hidden_states if self.embedding_norm is None else self.embedding_norm(hidden_states)

    def _beside_tokens(
        self, hidden_states: Tensor, ids: Tensor | None, batch: LayerContext
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What enters the first layer, and what layers get of the embeddings besides the tokens'."""
        handed: dict[str, Tensor] = {}
        context = batch.changed(execution=len(self.plan))  # their states lie behind those of all runs
        for number, part in enumerate(self.embeddings):
            out = EmbeddingOutput.of(part(hidden_states, ids, context))
            hidden_states = out.hidden_states
            handed |= {value_name(number, layer): value for layer, value in out.layers.items()}
        return hidden_states, handed

    def _positions(self, position_ids: Tensor | None, attention_mask: Any, past: Any, embeds: Tensor) -> Tensor:
        """Given positions, or ones that count valid tokens (so that left padding changes nothing)."""
        if position_ids is not None:
            return position_ids
        length = embeds.shape[1]
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:  # it covers what is in the cache too
            return positions_from_mask(attention_mask.to(embeds.device), length)
        return (torch.arange(length, device=embeds.device) + past).unsqueeze(0)

    def _mask_key(self, index: int) -> str:
        kind, window = self._kinds[index], self._windows[index]
        if kind not in ("full_attention", "sliding_attention", "hybrid", "hybrid_sliding"):
            return kind
        return "full_attention" if window is None else f"sliding_attention:{window}"

    def _runs_of_masks(self) -> dict[str, int]:
        """The run whose cache entry says how many keys a mask is over, by `_mask_key`; one that fills its entry."""
        specs = self.config.mixer_specs
        runs: dict[str, int] = {}
        for run, index in enumerate(self.plan):
            mixer, given = specs[index]
            if mixer.fills_cache(self.config, given):
                runs.setdefault(self._mask_key(index), run)
        return runs

    def _masks(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        segment_ids: Tensor | None = None,
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
        for key, run in self._mask_runs.items():
            # A static layer's unused slots must be masked in a single step too; transformers sees to it only where
            # every layer of the cache is static, which recurrent ones are not.
            static = cache is not None and run < len(cache.layers) and cache.layers[run].is_compileable
            common["allow_is_causal_skip"] = not (static and inputs_embeds.shape[1] == 1)
            if key == "full_attention":
                masks[key] = create_causal_mask(config=self.config, layer_idx=run, **common)
            elif key.startswith("sliding_attention"):
                window = self._windows[self.plan[run]]
                assert window is not None
                takers = [taken for index, taken in enumerate(self._takes_bands) if self._mask_keys[index] == key]
                band = window_band(window, self.config, run, common, segment_ids) if bands and any(takers) else None
                if band is not None:
                    masks[f"band:{key}"] = band
                if band is None or not all(takers):
                    masks[key] = sliding_mask(self.config.with_window(window), self.config, run, common)
        masks |= self._key_positions(inputs_embeds, attention_mask, cache, segment_ids)
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            masks["padding"] = attention_mask[:, -inputs_embeds.shape[1] :].to(inputs_embeds.device)
        return masks

    def _mask_of(self, index: int, masks: dict[str, Any]) -> Any:
        """The mask of layer `index`, None for none."""
        key = self._mask_keys[index]
        band = masks.get(f"band:{key}") if self._takes_bands[index] else None
        return masks.get(key) if band is None else band

    def _key_positions(
        self, embeds: Tensor, attention_mask: Any, cache: Cache | None, segment_ids: Tensor | None
    ) -> dict[str, KeyPositions]:
        """Where the keys of each kind of layer are, for the layers that ask, as entries of `_masks`."""
        made: dict[str, KeyPositions] = {}
        mask = attention_mask if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 else None
        batch, length = embeds.shape[:2]
        for index in self.plan:
            mask_key = self._mask_key(index)
            key, run = f"keys:{mask_key}", self._mask_runs[mask_key]
            if not self.asks_keys[index] or key in made:
                continue
            total, offset = cache.get_mask_sizes(length, run) if cache is not None else (length, 0)
            past = cache.get_query_offset(run) if cache is not None else 0
            sizes, window = (total, offset, past), self._windows[index]
            made[key] = key_positions((batch, length), sizes, mask, segment_ids, window, embeds.device)
        return made

    def _keys_of(self, index: int, masks: dict[str, Any]) -> KeyPositions | None:
        """The entry of layer `index`, None where it does not ask."""
        if not self.asks_keys[index]:
            return None
        found = masks.get(f"keys:{self._mask_key(index)}")
        if found is None:
            raise ValueError(
                f"attention_mask: finished masks do not say where the keys are, which layer {index} needs; pass a mask "
                "over tokens [B, S]"
            )
        return found

    def create_masks_for_generate(
        self,
        inputs_embeds: Tensor,
        attention_mask: Any = None,
        past_key_values: Any = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The masks that `generate` prepares ahead of a compiled decoding step."""
        refuse_numbers(attention_mask)
        return self._masks(inputs_embeds, attention_mask, one_cache(past_key_values, cache, kwargs))

    def _position_biases(
        self, embeds: Tensor, attention_mask: Any, cache: Cache | None, masks: dict[str, Any]
    ) -> list[Tensor | None]:
        """ALiBi's bias [B, H, T, S] of each layer (shared by equal layers), [1, H, C, W] for one with a `Band`, None
        where it does not apply."""
        if not self.position.bias:
            return [None] * len(self.layers)
        made: dict[Any, Tensor] = {}
        biases: list[Tensor | None] = []
        for index, heads in enumerate(self._bias_heads):
            if heads is None:
                biases.append(None)
                continue
            band = self._mask_of(index, masks)
            if isinstance(band, Band):
                kind = (heads, self._mask_keys[index])
                if kind not in made:
                    slopes = alibi_slopes(heads, embeds.device)[None, :, None, None]
                    made[kind] = (slopes * band.distances()).to(embeds.dtype)
                biases.append(made[kind])
                continue
            length = embeds.shape[1]
            run = self._mask_runs[self._mask_keys[index]]
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
