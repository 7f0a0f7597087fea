"""Every recurrence with inputs for its whole range of gates, for the checks that hold for all of them.

Inputs are fp32, those that a model computes in bf16 being exact there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_arch.ops.delta_rule import delta_rule, dplr_delta_rule
from hf_arch.ops.diagonal_ssm import diagonal_ssm
from hf_arch.ops.elementwise import hgrn_scan
from hf_arch.ops.linear_attention import linear_attention
from hf_arch.ops.log_linear import log_linear_attention
from hf_arch.ops.mesa import mesa
from hf_arch.ops.momentum_delta import momentum_delta_rule
from hf_arch.ops.rank_attention import rank_attention
from hf_arch.ops.selective_scan import selective_scan
from hf_arch.ops.slots import abc_attention, gated_slot_attention
from hf_arch.ops.softmax_average import softmax_average
from hf_arch.ops.ssd import ssd

B, H, K, V, M, D = 2, 2, 4, 5, 6, 3
START = torch.tensor([5, 27])  # tokens before, of each row
MIN_LOG_DECAY = -0.606531  # of RWKV7


class Case(NamedTuple):
    """An op, its naive loop, its inputs by length and kind of gates (see `log_decay`), and the shapes of its state."""

    op: Callable
    naive: Callable
    inputs: Callable[[int, str], list]
    states: tuple[tuple[int, ...], ...]
    chunked: bool = True
    gated: bool = True
    moments: bool = False
    """Whether the first state is a sum of outer products k k^T."""

    def state(self) -> tuple[Tensor, ...]:
        states = tuple(torch.randn(B, *shape) for shape in self.states)
        return (states[0] @ states[0].mT, *states[1:]) if self.moments else states


def log_decay(gates: str, *shape: int) -> Tensor:
    """<= 0. "mild"; "open": next to 0; "shut": from -50 down; "mixed": three tenths shut, a fifth at exactly 0."""
    draw = torch.rand(shape)
    if gates == "mild":
        return -0.5 * draw
    if gates == "open":
        return -1e-6 * draw
    if gates == "shut":
        return -50 - 100 * draw
    choice = torch.rand(shape)
    return torch.where(choice < 0.3, -50 - 100 * draw, torch.where(choice > 0.8, 0.0, -0.5 * draw))


def signed(*shape: int) -> Tensor:
    """In [-1, 1], exact in bf16."""
    return (torch.rand(shape) * 2 - 1).bfloat16().float()


def directions(*shape: int) -> Tensor:
    """Of length one, but for the rounding to bf16."""
    return F.normalize(torch.randn(shape), dim=-1).bfloat16().float()


def heads(length: int) -> list[Tensor]:
    return [signed(B, length, H, dim) for dim in (K, K, V)]


def undecayed(length: int, gates: str) -> list:
    return [*heads(length), None]


def constant_decay(length: int, gates: str) -> list:
    return [*heads(length), log_decay(gates, H)]


def scalar_decay(length: int, gates: str) -> list:
    return [*heads(length), log_decay(gates, B, length, H)]


def vector_decay(length: int, gates: str) -> list:
    return [*heads(length), log_decay(gates, B, length, H, K)]


def bonus(length: int, gates: str) -> list:
    return [*vector_decay(length, gates), signed(H, K)]


def with_bonus(q: Tensor, k: Tensor, v: Tensor, g: Tensor, bonus: Tensor, *, op: Callable, **options) -> tuple:
    return op(q, k, v, g, bonus=bonus, **options)


def gated_slots(length: int, gates: str) -> list:
    f = log_decay(gates, B, length, H, M)
    return [*heads(length), 1 - f.exp(), f]


def slots_by_softmax(length: int, gates: str) -> list:
    """The gates are those of a softmax over time: of equals, of tokens that drown the past, or rough."""
    rough = signed(B, length, H, M)
    growing = rough + 100 * torch.arange(length)[:, None, None]
    return [*heads(length), {"mild": rough, "open": 0 * rough, "shut": growing, "mixed": 50 * rough}[gates]]


def averages_by_softmax(length: int, gates: str) -> list:
    q, k, v, _ = slots_by_softmax(length, gates)
    growing = 100 * torch.arange(length)[:, None, None]
    return [q, {"mild": k, "open": 0 * k, "shut": k + growing, "mixed": 50 * k}[gates], v]


def several_a_token(length: int, gates: str) -> list:
    q, k, v = (signed(B, length, count, H, dim) for count, dim in ((2, K), (3, K), (3, V)))
    return [q, k, v, log_decay(gates, B, length, H)]


def momentum(length: int, gates: str) -> list:
    """S keeps at most 1 - beta of itself, as in the layer: with more, two states that drive each other can grow
    without bound (exact values of 1e158 after 4,096 tokens)."""
    q, k, v = heads(length)
    k, beta = directions(B, length, H, K), torch.rand(B, length, H)
    decays = [log_decay(gates, B, length, H) + extra for extra in (torch.log1p(-beta), 0.0)]
    return [q, k, v, k * decays[0].exp().bfloat16().float().unsqueeze(-1), *decays, beta]


def least_squares(length: int, gates: str) -> list:
    q, _, v = heads(length)
    k, beta = directions(B, length, H, K), torch.rand(B, length, H)
    return [q, k, v, beta, log_decay(gates, B, length, H), 0.25 + torch.rand(H, K)]


def buckets(length: int, gates: str) -> list:
    own, weights = torch.rand(B, length, H), torch.rand(B, length, H, M)
    return [*heads(length), log_decay(gates, B, length, H), own, weights]


def delta(length: int, gates: str, decays: bool, beta: tuple[float, float], parallel: bool) -> list:
    q, k, v = heads(length)
    k = F.normalize(1 + 0.05 * k, dim=-1).bfloat16().float() if parallel else directions(B, length, H, K)
    strength = torch.empty(B, length, H).uniform_(*beta)
    return [q, k, v, strength, log_decay(gates, B, length, H) if decays else None]


def dplr(length: int, gates: str) -> list:
    r, k, v = heads(length)
    kappa = directions(B, length, H, K)
    rate = (kappa * torch.rand(kappa.shape)).bfloat16().float()
    return [r, log_decay(gates, B, length, H, K), k, v, -kappa, rate]


def bounded_dplr(length: int, gates: str) -> list:
    r, w, *rest = dplr(length, gates)
    return [r, w.clamp_min(MIN_LOG_DECAY), *rest]


def hgrn(length: int, gates: str) -> list:
    return [signed(B, length, D), log_decay(gates, B, length, D).exp()]


def mamba(length: int, gates: str) -> list:
    A = -torch.linspace(0.5, 1.5, D * K).view(D, K)
    steps = -log_decay(gates, B, length, D)
    return [signed(B, length, D), steps, A, signed(B, length, K), signed(B, length, K), signed(D)]


def mamba2(length: int, gates: str) -> list:
    A = -torch.linspace(0.5, 1.5, H)
    steps = -log_decay(gates, B, length, H)
    return [signed(B, length, H, V), steps, A, signed(B, length, 1, K), signed(B, length, 1, K), signed(H)]


def s4d(length: int, gates: str, numbers: tuple[int, ...]) -> list:
    """Its decays are the same at every token: the step size of a channel decides."""
    steps = {
        "mild": [-2.0, -1.0, 0.0],
        "open": [-12.0, -11.0, -10.0],
        "shut": [4.0, 4.5, 5.0],
        "mixed": [-9.0, -3.0, 4.0],
    }
    A_im = math.pi * torch.arange(K, dtype=torch.float32).repeat(D, 1) if numbers else None
    A_re = -0.5 - torch.rand(D, K)
    C, B_in = signed(D, K, *numbers), signed(D, K, *numbers)
    return [signed(B, length, D), torch.tensor(steps[gates]), A_re, A_im, C, B_in, signed(D)]


def _delta(decays: bool, beta: tuple[float, float], parallel: bool = False) -> Case:
    inputs = functools.partial(delta, decays=decays, beta=beta, parallel=parallel)
    return Case(delta_rule, delta_rule.naive, inputs, ((H, K, V),), gated=decays)


LINEAR = (linear_attention, linear_attention.naive)
STATE = ((H, K, V),)
CASES = {
    "linear attention": Case(*LINEAR, undecayed, STATE, gated=False),
    "constant decay": Case(*LINEAR, constant_decay, STATE),
    "scalar decay": Case(*LINEAR, scalar_decay, STATE),
    "vector decay": Case(*LINEAR, vector_decay, STATE),
    "bonus": Case(*(functools.partial(with_bonus, op=op) for op in LINEAR), bonus, STATE),
    "gated slots": Case(gated_slot_attention, gated_slot_attention.naive, gated_slots, ((H, K, M), (H, M, V))),
    "slots by softmax": Case(abc_attention, abc_attention.naive, slots_by_softmax, ((H, M), (H, K, M), (H, M, V))),
    "softmax average": Case(softmax_average, softmax_average.naive, averages_by_softmax, ((H, K), (H, K, V))),
    "several a token": Case(rank_attention, rank_attention.naive, several_a_token, STATE),
    "momentum": Case(momentum_delta_rule, momentum_delta_rule.naive, momentum, ((H, K, V), (H, K, V))),
    "mesa": Case(mesa, mesa.naive, least_squares, ((H, K, K), (H, K, V)), chunked=False, moments=True),
    "buckets": Case(
        *(functools.partial(op, start=START) for op in (log_linear_attention, log_linear_attention.naive)),
        buckets,
        ((M, H, K, V),),
    ),
    "delta": _delta(False, (0.0, 1.0)),
    "delta, beta near 2": _delta(False, (1.9, 2.0)),
    "delta, parallel keys": _delta(False, (0.9, 1.0), parallel=True),
    "gated delta": _delta(True, (0.0, 1.0)),
    "gated delta, beta near 2": _delta(True, (1.9, 2.0)),
    "dplr": Case(dplr_delta_rule, dplr_delta_rule.naive, dplr, STATE),
    "bounded dplr": Case(
        functools.partial(dplr_delta_rule, min_log_decay=MIN_LOG_DECAY), dplr_delta_rule.naive, bounded_dplr, STATE
    ),
    "hgrn": Case(hgrn_scan, hgrn_scan.naive, hgrn, ((D,),), chunked=False),
    "mamba": Case(selective_scan, selective_scan.naive, mamba, ((D, K),), chunked=False),
    "mamba2": Case(ssd, ssd.naive, mamba2, ((H, V, K),)),
    "s4d": Case(diagonal_ssm, diagonal_ssm.naive, functools.partial(s4d, numbers=(2,)), ((D, K, 2),)),
    "s4d, real": Case(diagonal_ssm, diagonal_ssm.naive, functools.partial(s4d, numbers=()), ((D, K),)),
}
