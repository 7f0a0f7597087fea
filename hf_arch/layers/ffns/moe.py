"""Mixture of experts (Shazeer et al. 2017; Fedus et al. 2021, arXiv 2101.03961; Jiang et al. 2024, arXiv 2401.04088).

    p = softmax(W x),   y = sum over the k largest p_e of  p_e / (sum of these)  FFN_e(x)   (+ shared experts, always)

Every token reaches its experts: nothing is dropped. Three things keep the experts evenly used, each on its own switch:
- load-balancing loss E sum_e f_e P_e, with f_e the share of tokens that chose e and P_e its mean probability (Switch);
- z-loss, the mean of (logsumexp of the logits)^2, which keeps the logits small (Zoph et al. 2022, arXiv 2202.08906);
- `score_bias`: a bias on the scores that takes part in the choice but not in the weights, moved by
  `bias_update_rate` towards the experts with too little to do (DeepSeek-V3, arXiv 2412.19437), without any loss.

With `router` "sigmoid" p = sigmoid(W x), and experts may be chosen within the best groups only (DeepSeek-V3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options, parse_options
from ...core.registry import FFNS
from ...ops.compat import functorch_levels
from ...ops.precision import state_dtype, without_autocast
from ..contract import EMPTY_CONTEXT, LayerContext, LayerOutput
from ..fp32 import KeepsFp32
from ..initial import residual_branches
from ..layout import SequenceLayout
from ..mixers.base import MixerCost, divide
from .experts import ClampedExperts, GatedExperts, PlainExperts
from .ffn import MLP, FeedForward, FeedForwardOptions, GatedMLP


@options
class MoEOptions(Options):
    """intermediate_size (of one expert) and hidden_act: None takes the config's. `gated`: SwiGLU-like experts instead
    of GPT-like ones. shared_intermediate_size: of all shared experts together, None = intermediate_size each.
    shared_gate: a sigmoid gate on their output (Qwen). clamp_limit, clamp_alpha: gpt-oss' experts, which have biases
    and clamp what they multiply; router_bias: its router's bias. A token's experts come from the `groups_per_token`
    best of `num_groups` groups."""

    num_experts: int = 8
    num_experts_per_tok: int = 2
    intermediate_size: int | None = None
    hidden_act: str | None = None
    gated: bool = True
    num_shared_experts: int = 0
    shared_intermediate_size: int | None = None
    shared_gate: bool = False
    clamp_limit: float | int | None = None
    clamp_alpha: float | int = 1.702
    router_bias: bool = False
    router: Literal["softmax", "sigmoid"] = "softmax"
    normalize_weights: bool = True
    routed_scaling_factor: float | int = 1.0
    num_groups: int = 1
    groups_per_token: int = 1
    aux_loss_coef: float | int = 0.01
    z_loss_coef: float | int = 0.0
    score_bias: bool = False
    bias_update_rate: float = 0.001


class TopKRouter(KeepsFp32):
    """[N, D] -> logits [N, E] in fp32 (fp64 for fp64 inputs), weights [N, k], experts [N, k]; the choice is by score
    plus bias, the weights by score alone."""

    keep_fp32: ClassVar[tuple[str, ...]] = ("score_bias",)
    score_bias: Tensor | None

    def __init__(self, hidden_size: int, options: MoEOptions):
        super().__init__()
        self.options = options
        self.weight = nn.Parameter(torch.empty(options.num_experts, hidden_size))
        self.bias = nn.Parameter(torch.empty(options.num_experts)) if options.router_bias else None
        self.register_buffer("score_bias", torch.zeros(options.num_experts) if options.score_bias else None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = state_dtype(x)
        with without_autocast(x):
            logits = F.linear(x.to(dtype), self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))
        scores = router_scores(logits, self.options)
        chosen = self.best_groups(scores if self.score_bias is None else scores + self.score_bias.to(dtype))
        chosen = chosen.topk(self.options.num_experts_per_tok, dim=-1).indices
        weights = scores.gather(1, chosen)
        if self.options.normalize_weights:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return logits, weights * self.options.routed_scaling_factor, chosen

    def best_groups(self, scores: Tensor) -> Tensor:
        """-inf at the experts outside a token's best groups, which are those whose two best experts score most."""
        groups, kept = self.options.num_groups, self.options.groups_per_token
        if kept == groups:
            return scores
        grouped = scores.unflatten(-1, (groups, -1))
        best = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1).topk(kept, dim=-1).indices
        outside = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(1, best, False)
        return grouped.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(-2)


@FFNS.register("moe")
class MixtureOfExperts(FeedForward):
    """A router, its experts, and experts that every token shares."""

    Options = MoEOptions
    routed: ClassVar[bool] = True
    label: ClassVar[str] = "MoE"
    config_features: ClassVar[tuple[str, ...]] = ("hidden_act",)

    def __init__(self, config: Any, options: MoEOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        size, activation = self.width(config, options), options.hidden_act or config.hidden_act
        self.router = TopKRouter(config.hidden_size, options)
        self.experts: nn.Module
        if options.clamp_limit is not None:
            limit, alpha = float(options.clamp_limit), float(options.clamp_alpha)
            self.experts = ClampedExperts(config, options.num_experts, size, limit, alpha)
        else:
            experts = GatedExperts if options.gated else PlainExperts
            self.experts = experts(config, options.num_experts, size, activation)
        self.shared_experts: FeedForward | None = None
        if options.num_shared_experts:
            width = self.shared_width(config, options)
            values = {"intermediate_size": width, "hidden_act": activation, "bias": False}
            shared = parse_options(FeedForwardOptions, values, "ffn moe")
            self.shared_experts = (GatedMLP if options.gated else MLP)(config, shared, layer_idx)
            if options.shared_gate:
                self.shared_gate = nn.Linear(config.hidden_size, 1, bias=False)
        self.load: Tensor | None = None  # no buffer, which DDP would overwrite with the first process's

    @classmethod
    def width(cls, config: Any, options: MoEOptions) -> int:
        kind = GatedMLP if options.gated else MLP
        return options.intermediate_size or config.intermediate_size or kind.default_intermediate_size(config)

    @classmethod
    def effective(cls, config: Any, options: MoEOptions) -> dict[str, Any]:
        training = ("aux_loss_coef", "z_loss_coef", "bias_update_rate")
        values = {name: value for name, value in super().effective(config, options).items() if name not in training}
        if options.clamp_limit is None:
            values["clamp_alpha"] = None
        else:
            values.update(clamp_limit=float(options.clamp_limit), hidden_act=None)
        return {**values, "shared_intermediate_size": cls.shared_width(config, options)}

    @classmethod
    def shared_width(cls, config: Any, options: MoEOptions) -> int:
        """The width of all shared experts together, 0 where there are none."""
        if not options.num_shared_experts:
            return 0
        return options.shared_intermediate_size or cls.width(config, options) * options.num_shared_experts

    @classmethod
    def validate(cls, config: Any, options: MoEOptions) -> None:
        super().validate(config, options)

        def within(name: str, top: int, of: str) -> None:
            value = getattr(options, name)
            if not 1 <= value <= top:
                near = min(max(value, 1), top)
                raise ConfigError(f"ffn moe: {name} {value} is not allowed with {top} {of}; nearest valid: {near}")

        if options.num_experts < 1:
            raise ConfigError(f"ffn moe: num_experts {options.num_experts} is not allowed; use an integer >= 1")
        within("num_experts_per_tok", options.num_experts, "experts")
        within("num_groups", options.num_experts, "experts")
        within("groups_per_token", options.num_groups, "groups")
        divide(options.num_experts, options.num_groups, "ffn moe: num_groups", "num_experts")
        within(
            "num_experts_per_tok",
            options.num_experts // options.num_groups * options.groups_per_token,
            "experts in a token's groups",
        )
        if options.num_shared_experts < 0:
            raise ConfigError(f"ffn moe: num_shared_experts {options.num_shared_experts} is not allowed; use 0 or more")
        if options.clamp_limit is not None and not (options.gated and options.clamp_limit > 0):
            raise ConfigError(
                f"ffn moe: clamp_limit {options.clamp_limit} is not allowed; use a number > 0 and gated experts"
            )
        for name in ("shared_gate", "shared_intermediate_size"):
            if getattr(options, name) and not options.num_shared_experts:
                raise ConfigError(
                    f"ffn moe: {name} {getattr(options, name)!r} would have no effect without shared experts; leave it "
                    "out or set num_shared_experts to 1"
                )

    @classmethod
    def tensor_parallel(cls, config: Any, options: MoEOptions) -> dict[str, str]:
        up = {"experts.gate_up_proj": "packed_colwise"} if options.gated else {"experts.up_proj": "colwise"}
        plan = {**up, "experts.down_proj": "rowwise", "experts": "moe_tp_experts"}
        if options.num_shared_experts:
            shared = (GatedMLP if options.gated else MLP).tensor_parallel(config, options)
            plan |= {f"shared_experts.{module}": style for module, style in shared.items()}
        return plan

    @classmethod
    def expert_parallel(cls, config: Any, options: MoEOptions) -> dict[str, str]:
        up = "experts.gate_up_proj" if options.gated else "experts.up_proj"
        return {up: "grouped_gemm", "experts.down_proj": "grouped_gemm", "experts": "ep_dispatch_experts"}

    def forward(self, hidden_states: Tensor, context: LayerContext = EMPTY_CONTEXT) -> LayerOutput:
        tokens = hidden_states.flatten(0, -2)
        logits, weights, chosen = self.router(tokens)
        if self.options.score_bias and self.training:
            self.count(chosen, context.layout)
        out = self.experts(tokens, chosen, weights).view_as(hidden_states)
        if self.shared_experts is not None:
            shared = self.shared_experts(hidden_states)
            if self.options.shared_gate:
                shared = torch.sigmoid(self.shared_gate(hidden_states)) * shared
            out = out + shared
        return LayerOutput(out, router_logits=logits)

    @torch.no_grad()
    def count(self, chosen: Tensor, layout: SequenceLayout) -> None:
        """Add the valid tokens that chose each expert to its load; a recomputed forward doubles all loads.

        Raises:
            ValueError: under torch.func, whose tensors must not be kept.
        """
        if functorch_levels():
            raise ValueError(
                "ffn moe: torch.func does not follow the loads that score_bias counts in training; use model.eval(), "
                "or score_bias=False"
            )
        valid = torch.ones(chosen.shape[0], device=chosen.device)
        if layout.mask is not None:
            valid = layout.restore(layout.mask).flatten().to(valid)
        load = torch.zeros(self.options.num_experts, device=chosen.device)
        load = load.scatter_add_(0, chosen.flatten(), valid.repeat_interleave(chosen.shape[1]))
        self.load = load if self.load is None else self.load + load

    @torch.no_grad()
    def rebalance(self) -> None:
        """Raise the bias of experts with less than the mean load since the last call, lower that of the others."""
        if self.load is None or self.router.score_bias is None:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.load)
        step = torch.sign(self.load.mean() - self.load) * self.options.bias_update_rate
        self.router.score_bias.add_(step.to(self.router.score_bias.dtype))
        self.load = None

    @classmethod
    def routing_losses(
        cls,
        layers: Sequence[MoEOptions],
        router_logits: Sequence[Tensor],
        mask: Tensor | None,
        weights: Tensor | None = None,
        coefficients: Sequence[float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(load-balancing loss, what training adds to the loss), summed over kinds of layer, each over all its layers.

        The balance of a call is a product of means over its valid tokens, and counts by the call's share of its
        optimiser step. The z-loss is a sum over targets, so that a step in several calls has that of one.

        Args:
            layers: options of the layers in order. router_logits: [B T, E] of each.
            mask: [B, T], 1 at valid tokens, or None.
            weights: [B, T], of the targets in the loss (`target_weights`), or None for equal ones at valid tokens.
            coefficients: the weight of each layer's balance loss; None takes its options' `aux_loss_coef`.
        """
        valid = router_logits[0].new_ones(router_logits[0].shape[0]) if mask is None else mask.flatten().float()
        weight_of = coefficients or [layer.aux_loss_coef for layer in layers]
        # Options have no hash, and a compiler cannot see their repr.
        kinds: list[tuple[MoEOptions, float, list[Tensor]]] = []
        for layer, coefficient, logits in zip(layers, weight_of, router_logits, strict=True):
            same = [parts for options, known, parts in kinds if options == layer and known == coefficient]
            if same:
                same[0].append(logits)
            else:
                kinds.append((layer, coefficient, [logits]))
        given = valid / valid.sum() if weights is None else weights.flatten().to(valid)
        share, counted = given.sum(), given * valid  # what precedes a row's first token is padding with a target
        balance = penalty = valid.new_zeros(())
        for layer, coefficient, parts in kinds:
            logits = torch.cat(parts)
            part = load_balancing_loss(logits, layer, valid.repeat(len(parts)))
            balance, penalty = balance + part, penalty + coefficient * part * share
            if layer.z_loss_coef:
                z = torch.logsumexp(logits, -1).square()
                penalty = penalty + layer.z_loss_coef * (z * counted.repeat(len(parts))).sum() / len(parts)
        return balance, penalty

    def cost(self, seq_len: int) -> MixerCost:
        """The router and the chosen experts; the shared ones are Linear layers, which are counted as such."""
        expert = sum(parameter[0].numel() for parameter in self.experts.parameters())
        products = sum(parameter[0].numel() for parameter in self.experts.parameters() if parameter.dim() == 3)
        per_token = 2 * (self.router.weight.numel() + self.options.num_experts_per_tok * products)
        idle = self.options.num_experts - self.options.num_experts_per_tok
        return MixerCost(mixing_flops=per_token * seq_len, decode_flops=per_token, inactive_parameters=idle * expert)

    def init_weights(self) -> None:
        std = self.config.initializer_range
        last = std / residual_branches(self.config) ** 0.5 if self.config.rescale_residual_init else std
        init.normal_(self.router.weight, mean=0.0, std=std)
        if self.router.bias is not None:
            init.zeros_(self.router.bias)
        for name, weight in self.experts.named_parameters():
            if name.endswith("_bias"):
                init.zeros_(weight)
                continue
            init.normal_(weight, mean=0.0, std=last if name == "down_proj" else std)
        if isinstance(self.shared_experts, (GatedMLP, MLP)):
            init.normal_(self.shared_experts.down_proj.weight, mean=0.0, std=last)
        if self.router.score_bias is not None:
            init.zeros_(self.router.score_bias)


def router_scores(logits: Tensor, options: MoEOptions) -> Tensor:
    """[N, E] logits -> scores in [0, 1]."""
    return logits.softmax(-1) if options.router == "softmax" else logits.sigmoid()


def load_balancing_loss(logits: Tensor, options: MoEOptions, weights: Tensor) -> Tensor:
    """E sum_e f_e P_e over tokens weighted by `weights` [N]; k where all experts are used equally.

    The choice is by score alone: a bias must not hide an imbalance from this loss.
    """
    scores = router_scores(logits, options)
    probabilities = scores / scores.sum(-1, keepdim=True) if options.router == "sigmoid" else scores
    chosen = scores.topk(options.num_experts_per_tok, dim=-1).indices
    share = weights / weights.sum()
    used = torch.zeros_like(scores).scatter_(1, chosen, 1.0)
    return options.num_experts * ((used * share[:, None]).sum(0) * (probabilities * share[:, None]).sum(0)).sum()


def rebalance_experts(model: nn.Module) -> None:
    """Move the score biases of every mixture of experts in `model`; to be called after each optimiser step."""
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            module.rebalance()
