"""Speed of every recurrence by itself, in bf16 as a model under autocast calls it: plain torch and FLA's kernels.

Shapes are [B, T, H] heads of width 128, those that flash-linear-attention reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_arch.ops import backend as dispatch
from hf_arch.ops.catalogue import RECURRENCES
from tools.gpu_timing import Bench, Row, attempt, backend_of

SHAPES = ((1, 8192, 96), (4, 2048, 16), (2, 16384, 16))
TUNED_AT = ((1, 1024, 96), (4, 1024, 16))
"""Kernels are tuned by the number of heads, not by lengths: short rows leave memory for several processes."""
WIDTH, SLOTS, STATE = 128, 64, 16
SLOW_MILLISECONDS = 2000.0
"""A form slower than this at the smallest shape is not tried at the larger ones."""
OPS = {op.__name__: op for op in RECURRENCES}


class Inputs:
    """Random inputs of recurrences at one shape."""

    def __init__(self, bench: Bench, batch: int, length: int, heads: int):
        self.width = 16 if bench.small else WIDTH
        self.device, self.heads, self.rows = bench.device, heads, (batch, length)

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*self.rows, *shape, device=self.device, dtype=dtype).requires_grad_()

    def decay(self, *shape: int) -> Tensor:
        return F.logsigmoid(3 + torch.randn(*self.rows, *shape, device=self.device)).requires_grad_()

    def fixed(self, *shape: int) -> Tensor:
        return torch.rand(*shape, device=self.device).requires_grad_()

    def qkv(self) -> list[Tensor]:
        return [self.normal(self.heads, self.width) for _ in range(3)]

    def directions(self) -> Tensor:
        return F.normalize(self.normal(self.heads, self.width).detach(), dim=-1).requires_grad_()

    def strengths(self) -> Tensor:
        return torch.rand(*self.rows, self.heads, device=self.device).requires_grad_()


def attention(x: Inputs) -> Callable[[], Tensor]:
    q, k, v = (y.transpose(1, 2) for y in x.qkv())
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)


def call(name: str, *arguments: Tensor | None, **options: object) -> Callable[[], Tensor]:
    return lambda: OPS[name](*arguments, **options)[0]


def dplr(x: Inputs, bounded: bool) -> Callable[[], Tensor]:
    r, k, v = x.qkv()
    removal = x.directions()
    decay = (-0.6 * torch.rand(*x.rows, x.heads, x.width, device=x.device)).requires_grad_()
    options = {"min_log_decay": -0.606531} if bounded else {}
    return call("dplr_delta_rule", r, decay, k, v, removal, (removal * -0.5).detach().requires_grad_(), **options)


def selective_scan(x: Inputs) -> Callable[[], Tensor]:
    channels = x.heads * x.width
    A, skip = (-x.fixed(channels, STATE)).detach().requires_grad_(), x.fixed(channels)
    steps = (-x.decay(channels)).detach().requires_grad_()
    return call("selective_scan", x.normal(channels), steps, A, x.normal(STATE), x.normal(STATE), skip)


def diagonal_ssm(x: Inputs) -> Callable[[], Tensor]:
    channels = x.heads * x.width
    parts = [(-3 + x.fixed(channels)).detach(), (-x.fixed(channels, STATE)).detach(), x.fixed(channels, STATE)]
    return call("diagonal_ssm", x.normal(channels), *parts, x.fixed(channels, STATE, 2))


def state_space_duality(x: Inputs) -> Callable[[], Tensor]:
    steps = (-x.decay(x.heads)).detach().requires_grad_()
    A = (-x.fixed(x.heads)).detach().requires_grad_()
    return call("ssd", x.normal(x.heads, x.width), steps, A, x.normal(1, x.width), x.normal(1, x.width))


def gated_slots(x: Inputs) -> Callable[[], Tensor]:
    forget = x.decay(x.heads, SLOTS)
    write = (1 - forget.exp()).detach().to(torch.bfloat16).requires_grad_()
    return call("gated_slot_attention", *x.qkv(), write, forget)


def several_a_token(x: Inputs) -> Callable[[], Tensor]:
    arrays = (x.normal(2, x.heads, x.width) for _ in range(3))
    return call("rank_attention", *arrays, x.decay(x.heads))


def bonus(x: Inputs) -> Callable[[], Tensor]:
    weight = x.fixed(x.heads, x.width)
    return call("linear_attention", *x.qkv(), x.decay(x.heads, x.width), bonus=weight)


def hgrn(x: Inputs) -> Callable[[], Tensor]:
    channels = x.heads * x.width
    return call("hgrn_scan", x.normal(channels), x.decay(channels).detach().exp().requires_grad_())


Maker = Callable[[Inputs], Callable[[], Tensor]]
MAKERS: dict[str, Maker] = {
    "softmax attention (sdpa)": attention,
    "linear attention": lambda x: call("linear_attention", *x.qkv()),
    "scalar decay (retnet, mamba2's form)": lambda x: call("linear_attention", *x.qkv(), x.decay(x.heads)),
    "vector decay (gla, hgrn2)": lambda x: call("linear_attention", *x.qkv(), x.decay(x.heads, x.width)),
    "vector decay and bonus (rwkv6)": bonus,
    "state space duality (mamba2)": state_space_duality,
    "delta rule": lambda x: call("delta_rule", x.normal(x.heads, x.width), x.directions(), *x.qkv()[:1], x.strengths()),
    "gated delta rule": lambda x: call(
        "delta_rule", x.normal(x.heads, x.width), x.directions(), *x.qkv()[:1], x.strengths(), x.decay(x.heads)
    ),
    "dplr delta rule (kda, gdn2, comba)": lambda x: dplr(x, False),
    "dplr delta rule, bounded decay (rwkv7)": lambda x: dplr(x, True),
    "gated slots (gsa)": gated_slots,
    "slots by softmax (abc)": lambda x: call("abc_attention", *x.qkv(), x.normal(x.heads, SLOTS)),
    "several reads and writes (mamba3)": several_a_token,
    "softmax average (lightnet)": lambda x: call("softmax_average", *x.qkv()),
    "elementwise (hgrn)": hgrn,
    "diagonal state space (ssm)": diagonal_ssm,
    "selective scan (mamba)": selective_scan,
}
WITH_KERNEL = [
    name for name in MAKERS if not name.startswith(("softmax attention", "several", "diagonal", "selective"))
]


def recurrences(bench: Bench) -> Iterator[Row]:
    """Forward and backward of each at each shape: the smallest shape first, so that an end in time costs the rest."""
    shapes = (
        ((1, 64, 2), (2, 32, 1)) if bench.small else sorted(SHAPES, key=lambda shape: shape[0] * shape[1] * shape[2])
    )
    too_slow: set[tuple[str, str]] = set()
    for batch, length, heads in shapes:
        for name, make in MAKERS.items():
            for backend in ("fla", "torch"):
                row: Row = {"op": name, "shape": [batch, length, heads], "backend": backend}
                if backend == "fla" and not dispatch.use_fla(
                    torch.empty(1, 2, device=bench.device, dtype=torch.bfloat16)
                ):
                    continue
                if (name, backend) in too_slow or (name.startswith("softmax attention") and backend == "fla"):
                    continue
                row = attempt(row, lambda: _time(bench, make, batch, length, heads, backend), bench)  # noqa: B023
                if row.pop("without a kernel", False):
                    continue
                if row.get("milliseconds", 0.0) > SLOW_MILLISECONDS or "error" in row:
                    too_slow.add((name, backend))
                yield row


def warm_up(bench: Bench, name: str) -> None:
    """Compile and tune the kernels of one op for both numbers of heads, where it has any."""
    for batch, length, heads in TUNED_AT:
        _time(bench, MAKERS[name], batch, length, heads, "fla")


def _time(bench: Bench, make: Maker, batch: int, length: int, heads: int, backend: str) -> Row:
    torch.manual_seed(0)
    forward = make(Inputs(bench, batch, length, heads))
    with backend_of(backend), _KernelCalls() as calls:
        out = forward()
        if backend == "fla" and not calls.count:
            return {"without a kernel": True}
        grad = torch.randn_like(out)
        del out
        both = bench.milliseconds(lambda: forward().backward(grad))
        with torch.no_grad():
            alone = bench.milliseconds(forward)
        memory = bench.peak_memory(lambda: forward().backward(grad))
    return {"milliseconds": round(both, 3), "forward_milliseconds": round(alone, 3), "peak_bytes": memory}


class _KernelCalls:
    """Counts the calls of FLA's kernels."""

    def __enter__(self) -> _KernelCalls:
        self.count, self.find = 0, dispatch._kernel

        def counted(name: str) -> Callable[..., Any]:
            self.count += 1
            return self.find(name)

        dispatch._kernel = counted
        return self

    def __exit__(self, *_: object) -> None:
        dispatch._kernel = self.find
