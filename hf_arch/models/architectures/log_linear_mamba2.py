"""Log-Linear Mamba-2 (Guo et al. 2025): Mamba-2 with a state for each power of two of the past.

The class names avoid the word, as those of mamba2 do.
"""

from typing import ClassVar

from ...layers.mixers.log_linear_mamba2 import LogLinearMamba2 as LogLinearMamba2
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "log_linear_mamba2",
    summary="state space with one state for each power of two of the past",
    paper="Guo et al. 2025, arXiv 2506.04761",
    tiny={
        "mixer": {
            "type": "log_linear_mamba2",
            "head_dim": 16,
            "state_size": 8,
            "n_groups": 2,
            "proj_bias": True,
            "num_levels": 5,
        }
    },
)
class HfaLogLinearStateSpaceConfig(ArchConfig):
    """Blocks of the mixer and SwiGLU, heads of width 64, 128 numbers of state a channel and bucket."""

    frozen_pad_embedding: ClassVar[bool] = False

    hidden_size: int = 2048
    num_hidden_layers: int = 48
    num_attention_heads: int = 1
    mixer: Component = "log_linear_mamba2"
    norm_eps: float = 1e-5
    position: str = "none"
