"""Position encodings, by name: `learned`, `sinusoidal` (Vaswani et al. 2017), `rope` (Su et al. 2021), `alibi`
(Press et al. 2021), `none`.

`learned` and `sinusoidal` are added to the token embeddings; `rope` rotates queries and keys inside the mixers that
take it; `alibi` biases attention scores. RoPE covers every `rope_parameters` type of transformers.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.registry import POSITIONS
from .compat import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from .fp32 import KeepsFp32, is_low_precision
from .rope_parameters import RotarySpec, rotated_features


class Position(nn.Module):
    """A position encoding. `embed` gives [B or 1, T, D] to add to the embeddings, or None."""

    rotary: ClassVar[bool] = False
    """Whether attention rotates its queries and keys."""
    bias: ClassVar[bool] = False
    """Whether attention scores get a bias from `alibi_bias`."""
    label: ClassVar[str] = ""

    def __init__(self, config: Any):
        super().__init__()

    def embed(self, position_ids: Tensor, dtype: torch.dtype) -> Tensor | None:
        return None


@POSITIONS.register("none")
class NoPosition(Position):
    """No position information beyond the causal order (Kazemnejad et al. 2023, NoPE)."""

    label = "NoPE"


@POSITIONS.register("rope")
class RotaryPosition(Position):
    """Rotation of queries and keys, applied inside the mixers."""

    rotary = True
    label = "RoPE"


@POSITIONS.register("alibi")
class AlibiPosition(Position):
    """Linear bias -slope_h * distance on attention scores."""

    bias = True
    label = "ALiBi"


@POSITIONS.register("learned")
class LearnedPosition(Position):
    """A learned vector per position, `max_position_embeddings` of them."""

    label = "Learned"

    def __init__(self, config: Any):
        super().__init__(config)
        self.count = config.max_position_embeddings
        self.embedding = nn.Embedding(self.count, config.hidden_size)

    def embed(self, position_ids: Tensor, dtype: torch.dtype) -> Tensor:
        # Looked at on a CPU alone: elsewhere it would wait for the device at every step.
        if position_ids.device.type == "cpu" and position_ids.numel() and not torch.compiler.is_compiling():
            first, last = map(int, position_ids.aminmax())
            count = getattr(self.embedding, "num_embeddings", self.count)  # an adapter around it has no such number
            if first < 0 or last >= count:
                wrong, remedy = (first, "count from 0") if first < 0 else (last, "take shorter rows")
                raise IndexError(f"position {wrong}: the model has learned positions 0 to {count - 1}; {remedy}")
        return self.embedding(position_ids)


@POSITIONS.register("sinusoidal")
class SinusoidalPosition(Position):
    """Fixed sines and cosines of geometrically spaced wavelengths (sines first, then cosines)."""

    label = "Sin"

    def __init__(self, config: Any):
        super().__init__(config)
        self.dim = config.hidden_size

    def embed(self, position_ids: Tensor, dtype: torch.dtype) -> Tensor:
        half = (self.dim + 1) // 2
        steps = torch.arange(half, device=position_ids.device, dtype=torch.float32)
        angles = position_ids[..., None].float() * torch.exp(steps * (-math.log(10000.0) / half))
        return torch.cat((angles.sin(), angles.cos()), -1)[..., : self.dim].to(dtype)


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> Tensor:
    """ALiBi's slope of each head, fp32 [H]: 2^(-8 i / n) for n a power of two, else interleaved from the next one
    (paper, section 3)."""

    def geometric(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    power = 2 ** math.floor(math.log2(num_heads))
    slopes = geometric(power) + geometric(2 * power)[0::2][: num_heads - power]
    return torch.tensor(slopes, device=device)


class ArchRotaryEmbedding(KeepsFp32):
    """(cos, sin) of shape [B, T, head_dim] for RoPE in half-split form; the class name and attributes are those that
    transformers' weight initialisation and `dynamic_rope_update` look for."""

    keep_fp32: ClassVar[tuple[str, ...]] = ("inv_freq", "original_inv_freq")
    inv_freq: Tensor
    original_inv_freq: Tensor

    def __init__(self, spec: RotarySpec):
        super().__init__()
        self.config = spec
        self.max_seq_len_cached = self.original_max_seq_len = spec.max_position_embeddings
        kind = spec.rope_parameters.get("rope_type", "default")
        self.rope_type = "default" if kind == "inclusive" else kind  # transformers' initialisation knows its own alone
        inv_freq, scaling = self._frequencies()
        self.attention_scaling: float = scaling
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    def _frequencies(self, device: torch.device | None = None) -> tuple[Tensor, float]:
        default = self.compute_default_rope_parameters
        compute: Any = default if self.rope_type == "default" else ROPE_INIT_FUNCTIONS[self.rope_type]
        return compute(self.config, device)

    @staticmethod
    def compute_default_rope_parameters(
        config: RotarySpec, device: torch.device | None = None, **kwargs: Any
    ) -> tuple[Tensor, float]:
        """theta_i = base^(-2i / d) for i < d/2, with d the rotated share of head_dim."""
        if config.rope_parameters.get("rope_type") == "inclusive":
            return inclusive_frequencies(config, device)
        rotated = rotated_features(config)
        exponents = torch.arange(0, rotated, 2, dtype=torch.int64, device=device).float() / rotated
        return 1.0 / (config.rope_parameters["rope_theta"] ** exponents), 1.0

    def restore_fp32(self) -> None:
        """Frequencies that a wrapper has rounded (FSDP's `buffer_dtype`, say) are computed again."""
        if is_low_precision(self.inv_freq) or is_low_precision(self.original_inv_freq):
            inv_freq, self.attention_scaling = self._frequencies(self.inv_freq.device)
            self.inv_freq.data, self.original_inv_freq.data = inv_freq, inv_freq.clone()
            self.max_seq_len_cached = self.original_max_seq_len

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        self.restore_fp32()
        return self._rotation(x, position_ids)

    @dynamic_rope_update
    def _rotation(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].float() * self.inv_freq.float().to(x.device)
        angles = torch.cat((angles, angles), -1)
        return (angles.cos() * self.attention_scaling).to(x.dtype), (angles.sin() * self.attention_scaling).to(x.dtype)


def inclusive_frequencies(config: RotarySpec, device: torch.device | None = None) -> tuple[Tensor, float]:
    """theta_i = base^(-i / (d/2 - 1)) for i < d/2: from 1 to 1 / base, both taken (YOCO, arXiv 2405.05254)."""
    pairs = rotated_features(config) // 2
    exponents = torch.arange(pairs, dtype=torch.int64, device=device).float() / max(pairs - 1, 1)
    return 1.0 / (config.rope_parameters["rope_theta"] ** exponents), 1.0
