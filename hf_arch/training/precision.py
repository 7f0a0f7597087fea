"""What a run computes in: bf16 where this device is fast in it, else fp32; a recipe may ask for either."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_arch.core.errors import ConfigError
from hf_arch.training.compat import cpu_has_amx


@dataclass(frozen=True)
class Precision:
    """`name` is fp32, bf16 or fp16 (weights stay fp32, autocast does the rest); `reason` says in words why."""

    name: str
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix products."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]


def choose_precision(requested: str = "auto", device: torch.device | None = None) -> Precision:
    """The precision for `device` (default: where Trainer will train). Raises `ConfigError` for fp16 without a GPU."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if requested == "fp16" and device.type == "cpu":
        raise ConfigError(
            "training.precision: 'fp16' needs a GPU; allowed on this CPU: auto, bf16, fp32; nearest: 'bf16'"
        )
    if requested != "auto":
        return Precision(requested, "asked for by the recipe")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", "the GPU has bf16 tensor cores")
        return Precision("fp32", "the GPU has no bf16 units")
    if device.type == "cpu":
        # AVX-512 and AVX2 convert to fp32 and back: bf16 is only faster where tiles (AMX) multiply it.
        if cpu_has_amx():
            return Precision("bf16", "the CPU has AMX tiles")
        return Precision("fp32", "the CPU has no AMX tiles, bf16 would be slower")
    return Precision("fp32", f"nothing is known of bf16 on {device.type}")
