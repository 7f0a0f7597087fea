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
from torch.nn.parameter import is_lazy
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    MoeModelOutputWithPast,
)
from transformers.utils import logging

from ..core.errors import ConfigError
from ..core.registry import NORMS, POSITIONS
from ..layers.compat import (
    CACHE_ARGUMENT,
    TransformersKwargs,
    Unpack,
    capture_outputs,
    merge_with_config_defaults,
)
from ..layers.contract import LayerContext
from ..layers.documents import Documents, refuse_numbers
from ..layers.embeddings.base import EmbeddingOutput, value_name
from ..layers.layout import build_layout, positions_from_mask
from ..layers.norms import normed
from ..layers.positions import ArchRotaryEmbedding
from ..layers.state import count_tokens
from ..ops.one_row import row_kernels
from .arguments import one_cache
from .block import DecoderLayer
from .cache_checks import is_paged, states_of
from .configuration import ArchConfig
from .inputs import embedded, read_inputs
from .mask_plan import MaskPlan
from .prefixes import read_prefix
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
        self._layer_types, self._windows, self.states = config.layer_types, config.windows, states_of(config)
        self.mask_plan = MaskPlan(config, self.plan, self.layers, biased=self.position.bias)
        parametrization, its_options = config.parametrization_spec
        self._input_factor = parametrization.input(config, its_options)
        self.gradient_checkpointing = False
        self._refuse_lazy()
        self.post_init()

    def _refuse_lazy(self) -> None:
        """Parameters without a size cannot be drawn, counted or matched."""
        for name, parameter in self.named_parameters():
            if is_lazy(parameter):
                raise ConfigError(f"model: {name} has no size before a forward pass; lazy modules are not supported")

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
            inputs_embeds = embedded(self.embed_tokens, input_ids, self.config.vocab_size)
        else:
            self._require_ids()
        if self.gradient_checkpointing and self.training and (use_cache or past_key_values is not None):
            logger.warning_once(
                "gradient checkpointing runs layers twice, which a cache cannot follow; no cache is used"
            )
            use_cache, past_key_values = False, None
        if len(self.layers) != len(self._shared_index):
            raise ValueError(
                f"model: {len(self.layers)} layers, but it was built with {len(self._shared_index)}; they cannot be "
                "added or cut later, as by PEFT's layer_replication; set num_hidden_layers and copy the weights"
            )
        inputs = read_inputs(self, inputs_embeds, attention_mask, position_ids, past_key_values, use_cache, {**kwargs})
        (attention_mask, segment_ids, position_ids), past_key_values, past, given = inputs
        types, shape = given.pop("token_type_ids", None), (inputs_embeds.shape[0], inputs_embeds.shape[1])
        prefix = read_prefix(self.config, types, inputs.documents, past, shape)
        position_ids = self._positions(position_ids, attention_mask, past, inputs_embeds)
        masks = attention_mask
        if not isinstance(masks, dict):
            recorded = given.get("output_attentions", getattr(self.config, "output_attentions", False))
            own = (self.config, inputs_embeds, attention_mask, past_key_values, segment_ids, prefix)
            masks = self.mask_plan.masks(*own, bands=not recorded)
        padding = masks.get("padding")
        layout = build_layout(padding, segment_ids, has_state=padding is not None and bool(past > 0))
        rotary = [embedding(inputs_embeds, position_ids) for embedding in self.rotary_embs]
        biases = self.mask_plan.position_biases(inputs_embeds, attention_mask, past_key_values, masks)
        hidden_states = self._scaled_embeddings(inputs_embeds, position_ids)
        batch = LayerContext(
            layout=layout,
            position_ids=position_ids,
            cache=past_key_values,
            attention_kwargs=given,
            row=row_kernels(hidden_states),
        )
        hidden_states, published = self._beside_tokens(hidden_states, input_ids, batch)
        wants_router_logits = given.pop("output_router_logits", getattr(self.config, "output_router_logits", False))
        contexts = [self._context_of(run, batch, masks, rotary, biases) for run in range(len(self.plan))]
        hidden_states, router_logits = self._run_layers(hidden_states, published, contexts, wanted)
        count_tokens(past_key_values, inputs_embeds.shape[1])
        fields = {"last_hidden_state": hidden_states, CACHE_ARGUMENT: past_key_values}
        if wants_router_logits and router_logits:
            return MoeModelOutputWithPast(**fields, router_logits=tuple(router_logits))
        return BaseModelOutputWithPast(**fields)

    def _run_layers(
        self,
        hidden_states: Tensor,
        published: dict[str, Tensor],
        contexts: list[LayerContext],
        wanted: LossInputs | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """The normed hidden states [B, T, D] behind all runs of the plan, and the router logits of those that route.

        Args:
            published: what layers get by name; it grows by what layers publish. contexts: of each run.
            wanted: is filled where auxiliary losses need something.
        """
        state = self.depth.run("start", self.stream.run("start", hidden_states))
        router_logits: list[Tensor] = []
        shared = [parameters() for parameters in self.shared]
        blocks: Any = [*self.layers]
        for run, index in enumerate(self.plan):
            layer, shared_index = blocks[index], self._shared_index[index]
            if wanted is not None:
                wanted.contexts[index] = contexts[run]
            own = None if shared_index is None else shared[shared_index][index]
            with torch.no_grad() if run in self._untrained_runs else nullcontext():
                out = layer.run(state, own, published, contexts[run])
            state = out.state
            if run in self._normed_runs:
                state = (self.norm(state[0]), *state[1:])
            if wanted is not None and run in self._exits:
                wanted.exits.append(
                    state[0] if run in self._normed_runs else self.norm(self.stream.run("finish", state))
                )
            state = self.depth.run("between", state, run)
            if out.published:
                published.update(zip(layer.publishes, out.published, strict=True))
            if out.router_logits is not None:
                router_logits.append(out.router_logits)
        return normed(self.norm, self.stream.run("finish", state), contexts[-1].row)[1], router_logits

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
            attention_mask=self.mask_plan.mask_of(index, masks),
            position_embeddings=None if rotary_index is None else rotary[rotary_index],
            position_bias=biases[index],
            keys=self.mask_plan.keys_of(index, masks),
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
        past_key_values = one_cache(past_key_values, cache, kwargs)
        documents = Documents(attention_mask, None, None)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        shape = (inputs_embeds.shape[0], inputs_embeds.shape[1])
        prefix = read_prefix(self.config, kwargs.get("token_type_ids"), documents, past, shape)
        return self.mask_plan.masks(self.config, inputs_embeds, attention_mask, past_key_values, None, prefix)
