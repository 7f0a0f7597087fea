"""Peak FLOP/s of the device, the denominator of MFU: dense vendor figures for GPUs, a measured matmul for CPUs.

A vendor's figure with sparsity is halved here. The CPU's figure is the most that a square matmul ever reached with as
many threads as this process has, or fewer: a busy machine can only make a measurement too low, so every start measures
again (a tenth of a second after the first time) and `$HF_ARCH_CACHE/peak_flops.json` keeps the best.
"""

from __future__ import annotations

import json
import re
import time

import torch

from hf_arch.core.files import write_json
from hf_arch.data.cache import data_cache
from hf_arch.runs.provenance import cpu_name

FIRST, AGAIN = 0.4, 0.1
"""Seconds of a measurement on a machine that has none yet, and of later ones."""

# Part of the name that CUDA reports, longest match first -> dense TFLOP/s in (bf16 or fp16 tensor cores, fp32).
GPU_TFLOPS: dict[str, tuple[float, float]] = {
    "B200": (2250.0, 75.0),
    "H200": (989.4, 66.9),
    "GH200": (989.4, 66.9),
    "H100 PCIe": (756.5, 51.2),
    "H100 NVL": (835.5, 60.0),
    "H100": (989.4, 66.9),
    "A100": (312.0, 19.5),
    "A10G": (70.0, 35.0),
    "A10": (125.0, 31.2),
    "L40S": (362.1, 91.6),
    "L40": (181.1, 90.5),
    "L4": (121.0, 30.3),
    "RTX 5090": (209.5, 104.8),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
    "RTX A6000": (154.8, 38.7),
    "V100": (125.0, 15.7),
    "T4": (65.1, 8.1),
    "MI300X": (1307.4, 163.4),
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of one device in `dtype`, or None for a GPU that the table does not know (MFU is then left out)."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part in sorted(GPU_TFLOPS, key=len, reverse=True):
            if re.search(rf"\b{part}\b", name) and "Laptop" not in name:
                half, single = GPU_TFLOPS[part]
                return (single if dtype == torch.float32 else half) * 1e12
        return None
    return _cpu_peak_flops(dtype) if device.type == "cpu" else None


def _cpu_peak_flops(dtype: torch.dtype) -> float:
    cache, threads = data_cache() / "peak_flops.json", torch.get_num_threads()
    known: dict[str, float] = json.loads(cache.read_text()) if cache.exists() else {}

    def key(count: int) -> str:
        return f"{cpu_name()}, {count} threads, {dtype}, torch {torch.__version__}"

    # Later starts only have to find a better moment than all before.
    measured = measure_matmul_flops(dtype, seconds=AGAIN if key(threads) in known else FIRST)
    if measured > known.get(key(threads), 0.0):
        write_json(cache, known | {key(threads): measured})
    return max(measured, *(known.get(key(count), 0.0) for count in range(1, threads + 1)))


def measure_matmul_flops(dtype: torch.dtype, size: int = 1024, seconds: float = FIRST) -> float:
    """FLOP/s of the fastest of repeated [size, size] @ [size, size] products on the CPU within about `seconds`."""
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        left @ right
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return 2 * size**3 / best
