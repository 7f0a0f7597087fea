"""The feed-forward networks of a mixture of experts, packed into 3-D weights.

Packed weights let transformers' experts backends run all chosen pairs of token and expert as a few large products
(`model.set_experts_implementation("grouped_mm" | "batched_mm" | "eager")`). The loops below are the eager reference,
and run where torch's grouped products cannot: in fp64, and where rows of a weight do not begin at multiples of 16
bytes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.registry import ACTIVATIONS
from ...ops.compat import transformed
from ...ops.experts import experts_sum, fits
from ..compat import ALL_EXPERTS_FUNCTIONS, ExpertsInterface, is_expert_parallel, use_experts_implementation

ALIGNMENT = 16


def _grouped_mm(module: Any, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    if _trains_here(module, x, weights):
        up = module.gate_up_proj if module.has_gate else module.up_proj
        return experts_sum(x, experts, weights, up, module.down_proj, module.act_fn, module.has_gate)
    weights_of = [p for p in module.parameters() if p.dim() == 3]
    fits = all(p.stride(-2) * p.element_size() % ALIGNMENT == 0 for p in weights_of)
    fits = fits and x.dtype != torch.float64 and not transformed()
    grouped: Any = ALL_EXPERTS_FUNCTIONS["grouped_mm"]
    eager: Any = type(module).forward.__wrapped__
    return (grouped if fits else eager)(module, x, experts, weights)


def _trains_here(module: Any, x: Tensor, weights: Tensor) -> bool:
    """Whether the kernels are there for it and pay: with a gradient, and under autocast, which grouped products of
    torch do not know (a model must be scored as it was trained)."""
    wanted = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    whole = type(module) in (GatedExperts, PlainExperts) and not is_expert_parallel(module)
    return wanted and whole and fits(x, weights, *module.parameters())


BACKENDS = ExpertsInterface()
BACKENDS["grouped_mm"] = _grouped_mm


@use_experts_implementation(experts_interface=BACKENDS)
class GatedExperts(nn.Module):
    """E networks down(act(gate x) * up x); gate and up stacked in one weight.

    `forward(hidden_states [N, D], top_k_index [N, k], top_k_weights [N, k])` gives sum_k weights_k expert_k(x), [N, D];
    the names are those that transformers' and vLLM's experts have.
    """

    def __init__(self, config: Any, num_experts: int, intermediate_size: int, activation: str):
        super().__init__()
        self.num_experts = num_experts
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, config.hidden_size, intermediate_size))
        self.act_fn = ACTIVATIONS.get(activation, "hidden_act")

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        def network(expert: int, tokens: Tensor) -> Tensor:
            gate, up = F.linear(tokens, self.gate_up_proj[expert]).chunk(2, dim=-1)
            return F.linear(self.act_fn(gate) * up, self.down_proj[expert])

        return _weighted_sum(network, self.num_experts, hidden_states, top_k_index, top_k_weights)


@use_experts_implementation(experts_interface=BACKENDS, has_bias=True)
class ClampedExperts(nn.Module):
    """E networks W_d [ g sigmoid(alpha g) (u + 1) ] + b_d with g, u = W_gu x + b_gu clamped, g from above by `limit`, u
    to +-`limit` (gpt-oss); called as GatedExperts."""

    def __init__(self, config: Any, num_experts: int, intermediate_size: int, limit: float, alpha: float):
        super().__init__()
        self.num_experts, self.limit, self.alpha = num_experts, limit, alpha
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, config.hidden_size))
        self.gate_up_proj_bias = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, config.hidden_size, intermediate_size))
        self.down_proj_bias = nn.Parameter(torch.empty(num_experts, config.hidden_size))

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(gate * self.alpha) * (up + 1)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        def network(expert: int, tokens: Tensor) -> Tensor:
            gate_up = F.linear(tokens, self.gate_up_proj[expert], self.gate_up_proj_bias[expert])
            return F.linear(self._apply_gate(gate_up), self.down_proj[expert], self.down_proj_bias[expert])

        return _weighted_sum(network, self.num_experts, hidden_states, top_k_index, top_k_weights)


@use_experts_implementation(experts_interface=BACKENDS, has_gate=False)
class PlainExperts(nn.Module):
    """E networks down(act(up x)); called as GatedExperts."""

    def __init__(self, config: Any, num_experts: int, intermediate_size: int, activation: str):
        super().__init__()
        self.num_experts = num_experts
        self.up_proj = nn.Parameter(torch.empty(num_experts, intermediate_size, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, config.hidden_size, intermediate_size))
        self.act_fn = ACTIVATIONS.get(activation, "hidden_act")

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        def network(expert: int, tokens: Tensor) -> Tensor:
            return F.linear(self.act_fn(F.linear(tokens, self.up_proj[expert])), self.down_proj[expert])

        return _weighted_sum(network, self.num_experts, hidden_states, top_k_index, top_k_weights)


def _weighted_sum(network: Any, num_experts: int, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """Each expert over the tokens that chose it, one expert after another; under torch.func, which cannot follow
    a choice that depends on the data, each over all tokens."""
    if transformed():
        shares = [((experts == expert) * weights).sum(-1, keepdim=True) for expert in range(num_experts)]
        return sum((network(i, x) * share for i, share in enumerate(shares)), torch.zeros_like(x)).to(x.dtype)
    out = torch.zeros_like(x)
    for expert in range(num_experts):
        tokens, slots = torch.where(experts == expert)
        weighted = network(expert, x[tokens]) * weights[tokens, slots, None]
        out = out.index_add(0, tokens, weighted.to(out.dtype))
    return out
