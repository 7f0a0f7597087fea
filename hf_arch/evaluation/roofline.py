"""What a machine gives at most, and the share of it that each row of `hf-arch bench` has (Williams et al. 2009).

A phase can take no less than its FLOPs at the machine's product rate, nor less than the bytes that it has to move at
the machine's bandwidth: the larger of the two times is its limit, and limit over measured time its share. FLOPs are
those of `hf_arch.cost`. Bytes are the least that any program moves through memory:

- train: 40 for each parameter (fp32 weights read twice, gradients written, and AdamW's step over four and three).
- prefill: the weights of the products, and the cache written.
- decode: the weights of the products, and the cache read.

Activations are not counted, so a share is never too low by them. Weights that stay in the processor's caches move
faster than memory does: the share of a small model can pass 100 %.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

import hf_arch
from hf_arch.models.configuration import ArchConfig

SECONDS = 0.4
PRODUCT_SIZE = 1024
GPU_PRODUCT_SIZE = 8192
COPY_BYTES = 2**28
TRAINING_BYTES = 40
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Roofline:
    """product_flops: FLOP/s of a large square product by dtype; copy_bytes: bytes/s read and written by a copy of
    256 MB."""

    product_flops: Mapping[str, float]
    copy_bytes: float

    def seconds(self, flops: float, moved: float, dtype: str) -> float:
        """The least time for so many FLOPs in `dtype` and bytes through memory."""
        return max(flops / self.product_flops[dtype], moved / self.copy_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for files."""
        return asdict(self)


def measure_roofline(device: torch.device, dtypes: Sequence[str] = ("fp32", "bf16")) -> Roofline:
    """The fastest of repeated products in each of `dtypes` and of copies, for about half a second each."""
    size = PRODUCT_SIZE if device.type == "cpu" else GPU_PRODUCT_SIZE
    rates = {}
    for name in dict.fromkeys(dtypes):
        rates[name] = 2 * size**3 / _fastest(_product(size, _DTYPES[name], device), device)
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return Roofline(rates, 2 * COPY_BYTES / _fastest(lambda: target.copy_(source), device))


def _product(size: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)


def _fastest(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest call, after one that warms up."""
    best, end = float("inf"), 0.0
    while True:
        start = _now(device)
        action()
        now = _now(device)
        if not end:
            end = now + SECONDS
            continue
        best = min(best, now - start)
        if now > end:
            return best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def add_shares(rows: Sequence[dict[str, Any]], configs: Mapping[str, Any], roofline: Roofline, dtype: str) -> None:
    """Adds `roofline_share` to each row: {phase: limit over measured time}. `configs` are those of our models by the
    rows' names; a counterpart in another library computes the same. Rows whose work is not known are left as they are.
    """
    for row in rows:
        config = configs.get(row["name"])
        if not isinstance(config, ArchConfig):
            continue
        limits = limit_seconds(config, row["seq_len"], row["batch_size"], roofline, dtype)
        work = {"train": row["seq_len"], "prefill": row["seq_len"], "decode": 1}
        row["roofline_share"] = {
            phase: limits[phase] * row[f"{phase}_tokens_per_second"] / (row["batch_size"] * tokens)
            for phase, tokens in work.items()
        }


def limit_seconds(config: ArchConfig, length: int, batch_size: int, roofline: Roofline, dtype: str) -> dict[str, float]:
    """The least seconds of a training step, of a prefill and of a decoding step at `length` tokens of context."""
    cost = hf_arch.cost(config, length, batch_size)
    read = cost.linear_flops / 2 * _DTYPES[dtype].itemsize + cost.state_bytes(length)
    return {
        "train": roofline.seconds(
            cost.flops_per_token_train * length * batch_size, TRAINING_BYTES * cost.params_trainable, dtype
        ),
        "prefill": roofline.seconds(cost.prefill_flops, read, dtype),
        "decode": roofline.seconds(cost.decode_flops(length), read, dtype),
    }
