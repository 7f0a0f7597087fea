"""GPUs that `hf-arch plan` knows: their memory; the peak FLOP/s of `training/peak_flops.py`."""

from __future__ import annotations

from dataclasses import dataclass

from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.training.peak_flops import GPU_TFLOPS

MEMORY_GB: dict[str, float] = {
    "B200": 192,
    "H200": 141,
    "GH200": 96,
    "H100 PCIe": 80,
    "H100 NVL": 94,
    "H100": 80,
    "A100": 80,
    "A10G": 24,
    "A10": 24,
    "L40S": 48,
    "L40": 48,
    "L4": 24,
    "RTX 5090": 32,
    "RTX 4090": 24,
    "RTX 3090": 24,
    "RTX A6000": 48,
    "V100": 32,
    "T4": 16,
    "MI300X": 192,
}
"""Memory as vendors sell it, in 10^9 bytes; of models that come in two sizes the larger."""


WITHOUT_BF16 = ("V100", "T4")


@dataclass(frozen=True)
class Gpu:
    """One GPU: `memory` bytes, dense peak FLOP/s of its products in half precision and in fp32."""

    name: str
    memory: float
    half_flops: float
    single_flops: float

    def precision(self, asked: str) -> str:
        """What `training.precision` means on it. Raises `ConfigError` for bf16 where it has none."""
        if self.name in WITHOUT_BF16 and asked == "bf16":
            raise ConfigError(f"training.precision: 'bf16' but {self.name} has no bf16 units; nearest: 'fp16'")
        return ("fp32" if self.name in WITHOUT_BF16 else "bf16") if asked == "auto" else asked

    def peak(self, precision: str) -> float:
        """Peak FLOP/s in `precision` (fp32, bf16 or fp16)."""
        return self.single_flops if precision == "fp32" else self.half_flops


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`, whatever its case. Raises `ConfigError` that names the nearest."""
    known = {key.lower(): key for key in MEMORY_GB}
    key = known.get(" ".join(name.lower().replace("_", " ").replace("-", " ").split()))
    if key is None:
        raise choice_error("--gpu", name, MEMORY_GB)
    half, single = GPU_TFLOPS[key]
    return Gpu(key, MEMORY_GB[key] * 1e9, half * 1e12, single * 1e12)
