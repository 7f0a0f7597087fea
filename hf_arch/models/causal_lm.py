"""The language-model head: logits, the next-token loss, and the losses added to it in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.utils import logging

from ..layers.compat import (
    CACHE_ARGUMENT,
    TransformersKwargs,
    Unpack,
    can_return_tuple,
    slice_logits_to_keep,
)
from ..layers.pair_masks import pairs_as_blocks, valid_tokens
from ..layers.plain_linear import project
from .arguments import EitherName, accept_either_name, cache_of
from .common_names import aux_loss_coefficients, has_routed_layers
from .configuration import ArchConfig
from .decoder import ArchModel, LossInputs
from .late_logits import LateLogits, output_class
from .loss import (
    OfLogits,
    check_targets,
    chunked_cross_entropy,
    loss_chunk_size,
    penalise_max_logits,
    shifted_targets,
    target_weights,
)
from .losses.base import LogitLoss, LossContext, loss_names
from .prefixes import check_labels
from .pretrained import ArchPreTrainedModel
from .serving import CheckedGenerationMixin

logger = logging.get_logger(__name__)


class ArchForCausalLM(ArchPreTrainedModel, CheckedGenerationMixin):
    """Decoder with a language-model head; in training with a large vocabulary the loss never holds all logits
    (`logits` is then None)."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan: ClassVar[dict[str, str]] = {"lm_head": "colwise_gather_output"}
    _pp_plan: ClassVar[dict[str, Any]] = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan: ClassVar[dict[str, str]] = {"lm_head": "keep_full_weight"}
    model_class: ClassVar[type[ArchModel]] = ArchModel
    generate = accept_either_name(CheckedGenerationMixin.generate)

    def __init__(self, config: ArchConfig):
        super().__init__(config)
        self.model = self.model_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.losses = nn.ModuleList([loss(config, options) for loss, options in config.loss_specs])
        self.loss_names = loss_names(config)
        ffns = config.ffn_specs  # a layer that runs again routes again
        self._routed = [(layer, *ffns[layer]) for layer in self.model.plan if ffns[layer][0].routed]
        parametrization, given = config.parametrization_spec
        self._output_factor = parametrization.output(config, given)
        self.auxiliary_losses: dict[str, Tensor] = {}
        """What the last forward in training added to the loss, by name; detached."""
        self.post_init()

    def create_masks_for_generate(self, **kwargs: Any) -> dict[str, Any]:
        """See ArchModel."""
        kwargs.pop("config", None)
        return self.model.create_masks_for_generate(**kwargs)

    @accept_either_name
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As transformers' own."""
        return EitherName(super().prepare_inputs_for_generation(*args, **kwargs))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast | MoeCausalLMOutputWithPast:
        """Logits [B, T or logits_to_keep, V], and the mean next-token loss where `labels` [B, T] are given
        (shifted inside), with the losses of routers in training and, as transformers has it, where the config asks for
        router logits. `token_type_ids` [B, T]: see `prefixes.py`."""
        if labels is not None:
            check_labels(token_type_ids, labels, kwargs.get("shift_labels"))
        asks = getattr(self.config, "output_router_logits", False) and kwargs.get("output_router_logits") is not False
        trains_routers = labels is not None and bool(self.training or asks)
        if labels is None and self.training and not (asks or kwargs.get("output_router_logits")):
            self._say_what_is_left_out()
        if trains_routers:
            kwargs["output_router_logits"] = True
        inputs = LossInputs() if self.losses and self.training and labels is not None else None
        if inputs is not None:
            kwargs["loss_inputs"] = inputs
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            token_type_ids=token_type_ids,
            return_dict=True,  # whatever the config says, which this class's own output follows
            **kwargs,
        )
        routed = isinstance(out, MoeModelOutputWithPast)
        if labels is not None and (inputs is not None or (routed and trains_routers)):
            _labelled(out.last_hidden_state, labels, 0)  # the losses of the model are over all tokens
        logits, loss, of_logits = self._logits_and_loss(out.last_hidden_state, labels, logits_to_keep, kwargs)
        if inputs is not None and labels is not None:
            context = self._loss_context(out, inputs, input_ids, labels, attention_mask, kwargs)
            loss = loss + self._auxiliary(context, of_logits).to(loss.device)
        routing: dict[str, Any] = {}
        if isinstance(out, MoeModelOutputWithPast):
            aux_loss, penalty = self._routing_losses(out, attention_mask, labels, kwargs)
            if trains_routers and loss is not None:
                loss = loss + penalty.to(loss.device)
            routing = {"aux_loss": aux_loss, "router_logits": out.router_logits}
        return output_class(late=isinstance(logits, LateLogits), routed=bool(routing))(
            loss=loss,
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            **{CACHE_ARGUMENT: cache_of(out)},
            **routing,
        )

    def _logits_and_loss(
        self, hidden: Tensor, labels: Tensor | None, logits_to_keep: int | Tensor, kwargs: Any
    ) -> tuple[Any, Any, list[Tensor]]:
        """The logits of [B, T, D] after the final norm, the next-token loss (None without labels) and, in training, the
        auxiliary losses that read logits. In chunks the logits are computed when somebody reads them; never in a graph,
        where they are None."""

        def head() -> Tensor:
            return self._logits(slice_logits_to_keep(hidden, logits_to_keep))

        if labels is None:
            return head(), None, []
        rows = _labelled(hidden, labels, logits_to_keep)
        check_targets(shifted_targets(labels, kwargs.get("shift_labels")), self.vocab_size)
        further = [loss.of_logits for loss in self.losses if self.training and isinstance(loss, LogitLoss)]
        if not (self.training and self._chunk_size > 0):
            logits = self._logits(rows)
            kept = slice_logits_to_keep(logits, logits_to_keep) if rows is hidden else logits
            return kept, *self._whole_loss(logits, labels, further, kwargs)
        found = chunked_cross_entropy(
            self._head_input(rows),
            self.lm_head,
            labels,
            chunk_size=self._chunk_size,
            softcap=self.config.final_logit_softcapping,
            max_logit_penalty=self.config.max_logit_penalty,
            num_items_in_batch=kwargs.get("num_items_in_batch"),
            shift_labels=kwargs.get("shift_labels"),
            further=further,
        )
        loss, *of_logits = found if further else [found]
        late = None if torch.compiler.is_compiling() else LateLogits(head, self.lm_head, hidden.device.type)
        return late, loss, of_logits

    @property
    def _chunk_size(self) -> int:
        """Tokens whose logits the training loss holds at once; 0: all."""
        return loss_chunk_size(self.config.loss_chunk_size, self.vocab_size, self.device.type)

    def _whole_loss(
        self, logits: Tensor, labels: Tensor, further: Sequence[OfLogits], kwargs: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """The next-token loss of logits [B, T, V], and the losses `further` of the same logits."""
        loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, **kwargs)
        if self.config.max_logit_penalty:
            weights = target_weights(labels, **kwargs).to(logits.device)
            loss = penalise_max_logits(loss, logits, self.config.max_logit_penalty, weights)
        if not further:
            return loss, []
        weights = target_weights(labels, **kwargs).to(logits.device).flatten()
        wanted = shifted_targets(labels, kwargs.get("shift_labels")).to(logits.device).flatten()
        return loss, [each(logits.flatten(0, 1), wanted, weights) for each in further]

    def _logits(self, hidden_states: Tensor) -> Tensor:
        """[..., D] after the final norm -> [..., V], scaled and capped."""
        logits = project(self.lm_head, self._head_input(hidden_states))
        cap = self.config.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _loss_context(
        self,
        out: Any,
        inputs: LossInputs,
        input_ids: Tensor | None,
        labels: Tensor,
        attention_mask: Any,
        kwargs: Any,
    ) -> LossContext:
        if any(loss.reads_ids for loss in self.losses) and input_ids is None:
            raise ValueError("inputs_embeds: losses that look tokens up need their ids; pass input_ids")

        valid, documents = _valid_and_documents(inputs, attention_mask, labels.shape)
        return LossContext(
            hidden_states=out.last_hidden_state,
            embed=self.model.embed_tokens,
            input_ids=input_ids,
            targets=shifted_targets(labels, kwargs.get("shift_labels")),
            weights=target_weights(labels, **kwargs),
            logits=self._logits,
            layers=inputs.contexts,
            valid=valid,
            documents=documents,
            exits=inputs.exits,
            chunk_size=self._chunk_size,
        )

    def _say_what_is_left_out(self) -> None:
        """Warn, once, where training without labels leaves losses of the model out: nobody else computes them."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        left_out = list(self.loss_names)
        if has_routed_layers(self.config) and any(aux_loss_coefficients(self.config, [*self.model.plan])):
            left_out.append("the balance of the experts")
        if left_out:
            logger.warning_once(
                f"labels: a forward in training got none, so that its loss is without {', '.join(left_out)}; pass "
                "labels and take the model's own loss (label smoothing and a compute_loss_func do not), or add them"
            )

    def _auxiliary(self, context: LossContext, of_logits: list[Tensor]) -> Tensor:
        """The sum of the auxiliary losses, which are kept by name."""
        given = iter(of_logits)
        values = [next(given) if isinstance(loss, LogitLoss) else loss(context) for loss in self.losses]
        self.auxiliary_losses = {name: value.detach() for name, value in zip(self.loss_names, values, strict=True)}
        return torch.stack([value.float().to(values[0].device) for value in values]).sum()

    def _head_input(self, hidden_states: Tensor) -> Tensor:
        """Divided by `logits_scaling`, as the logits then are, and times the parametrisation's factor."""
        scaling = self.config.logits_scaling / self._output_factor
        return hidden_states if scaling == 1 else hidden_states / scaling

    def _routing_losses(
        self, out: MoeModelOutputWithPast, attention_mask: Any, labels: Tensor | None, kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """(balance of the experts, what training adds to the loss)."""
        router_logits: Any = out.router_logits
        shape = out.last_hidden_state.shape[:2]
        weights = None if labels is None else target_weights(labels, **kwargs)
        mask = attention_mask.get("padding") if isinstance(attention_mask, dict) else attention_mask
        if isinstance(mask, Tensor):
            mask = valid_tokens(mask, shape[1]).expand(shape).to(router_logits[0].device)
        else:
            mask = None  # none, or flex attention's BlockMask, a function of pairs
        layers, kinds, options = zip(*self._routed, strict=True)
        # Of the config, where TRL sets it after the model is built.
        coefficients = aux_loss_coefficients(self.config, [*layers])
        return kinds[0].routing_losses([*options], router_logits, mask, weights, coefficients)


def _labelled(hidden: Tensor, labels: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """Those of the hidden states [B, T, D] that `labels` are of: all, or those whose logits are kept.

    Raises:
        ValueError: labels of another shape.
    """
    kept = slice_logits_to_keep(hidden, logits_to_keep)
    for rows in (hidden, kept):
        if labels.shape == rows.shape[:2]:
            return rows
    batch, length = hidden.shape[:2]
    fewer = f", or [{batch}, {kept.shape[1]}] of the logits to keep" if kept.shape[1] != length else ""
    raise ValueError(
        f"labels: shape {list(labels.shape)} is not allowed; pass [{batch}, {length}], as input_ids{fewer}"
    )


def _valid_and_documents(inputs: LossInputs, mask: Any, shape: torch.Size) -> tuple[Tensor | None, Tensor | None]:
    """[B, T] each, from the layout of the layers; from a mask over pairs of tokens itself, which attention alone
    follows without reading it."""
    if isinstance(mask, Tensor) and mask.dim() > 2 and mask.shape[-1] == mask.shape[-2]:
        pairs = mask if mask.dim() == 4 else mask.unsqueeze(1)
        blocks = pairs_as_blocks(pairs if pairs.is_floating_point() else pairs.bool())
        return blocks.valid.expand(shape), blocks.first_key.expand(shape)
    layout = next(iter(inputs.contexts.values())).layout
    valid, documents = (None if each is None else layout.restore(each) for each in (layout.mask, layout.segment_ids))
    return valid, documents
