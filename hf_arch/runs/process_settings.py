"""What of torch's settings for the whole process moves numbers or speed, where it is not as torch begins: a plugin may
set it in passing, and no recipe tells."""

from __future__ import annotations

from contextlib import suppress
from functools import reduce
from typing import Any

import torch

_USUAL: dict[str, str] = {
    "get_default_dtype": "float32",
    "are_deterministic_algorithms_enabled": "False",
    "is_deterministic_algorithms_warn_only_enabled": "False",
    "is_anomaly_enabled": "False",
    "is_grad_enabled": "True",
    "is_autocast_enabled cpu": "False",
    "is_autocast_enabled cuda": "False",
    "backends.cudnn.enabled": "True",
    "backends.cudnn.benchmark": "False",
    "backends.cudnn.deterministic": "False",
    "backends.cuda.matmul.allow_fp16_accumulation": "False",
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction": "True",
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction": "True",
    "backends.cuda.flash_sdp_enabled": "True",
    "backends.cuda.mem_efficient_sdp_enabled": "True",
    "backends.cuda.math_sdp_enabled": "True",
    "backends.cuda.fp16_bf16_reduction_math_sdp_allowed": "False",
    "backends.mkldnn.enabled": "True",
    "backends.mkldnn.deterministic": "False",
    "backends.mkldnn.matmul.fp32_precision": "none",
    "backends.mha.get_fastpath_enabled": "True",
    "get_float32_matmul_precision": "highest",
}
"""{name in torch, of a function with its argument: how torch begins}."""
_SAME = {"ieee": "none", "tf32": "none"}
"""Ways of computing on a processor that are the usual one: tf32 is none there."""
_SMALLEST = 1e-39
"""Below the normal numbers of fp32."""


def process_settings() -> dict[str, str]:
    """{setting: value} of those that are not as torch begins."""
    found = {}
    for name, usual in _USUAL.items():
        with suppress(AttributeError, RuntimeError):  # of another version of torch
            value = _value(name)
            if name.startswith("backends.mkldnn"):
                value = _SAME.get(value, value)
            if value != usual:
                found[f"torch.{name.removeprefix('get_')}"] = value
    if _flushes_denormal():
        found["torch.flush_denormal"] = "True"
    return found


def _value(name: str) -> str:
    path, *arguments = name.split()
    held: Any = reduce(getattr, path.split("."), torch)
    return str(held(*arguments) if callable(held) else held).removeprefix("torch.")


def _flushes_denormal() -> bool:
    """There is no function that says so."""
    return not bool((torch.full((16,), _SMALLEST, dtype=torch.float32, device="cpu") * 0.5).any())
