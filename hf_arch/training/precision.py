"""What a run computes in: the faster of bf16 and fp32 on this device; a recipe may ask for either.

`training.precision: auto` is decided once and then stays: on a CPU by a measurement (`precision_speed.py`), on a GPU by
what its tensor cores multiply, and within a set by its first run, so that all runs of a comparison have one precision.
`HF_ARCH_PRECISION` replaces the measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_arch.core.errors import ConfigError
from hf_arch.environment import read
from hf_arch.training.precision_speed import precision_speed

OVERRIDE = "HF_ARCH_PRECISION"
DECIDABLE = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Precision:
    """`name` is fp32, bf16 or fp16 (weights stay fp32, autocast does the rest); `reason` says in words why;
    `measured` is the measurement behind it (`PrecisionSpeed.to_dict`), where there was one."""

    name: str
    reason: str
    measured: Mapping[str, Any] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix products."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for files; `decided` reads them."""
        return {
            "name": self.name,
            "reason": self.reason,
            **({} if self.measured is None else {"measured": dict(self.measured)}),
        }


def training_device() -> torch.device:
    """The device that Trainer takes where nothing else is said."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device or torch.device("cpu")


def choose_precision(requested: str = "auto", device: torch.device | None = None) -> Precision:
    """The precision for `device` (default: where Trainer will train). Raises `ConfigError` for fp16 without a GPU."""
    device = device or training_device()
    if requested == "fp16" and device.type == "cpu":
        raise ConfigError(
            "training.precision: 'fp16' needs a GPU; allowed on this CPU: auto, bf16, fp32; nearest: 'bf16'"
        )
    if requested != "auto":
        return Precision(requested, "asked for by the recipe")
    if (override := read(OVERRIDE)) not in (None, "auto"):
        return Precision(str(override), f"asked for by {OVERRIDE}")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", "the GPU has bf16 tensor cores")
        return Precision("fp32", "the GPU has no bf16 units")
    if device.type == "cpu":
        speed = precision_speed()
        return Precision(speed.faster, speed.describe(), speed.to_dict())
    return Precision("fp32", f"nothing is known of bf16 on {device.type}")


def decided(values: object) -> Precision | None:
    """The precision that was decided for a run before, from what `Precision.to_dict` wrote; None where it was not."""
    if not isinstance(values, Mapping) or values.get("name") not in DECIDABLE:
        return None
    return Precision(str(values["name"]), str(values.get("reason") or "decided before"), values.get("measured"))
