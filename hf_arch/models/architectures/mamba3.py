"""Mamba-3 (Lahoti et al. 2026): a state space with a trapezoidal rule and turning keys, no attention, no FFN.

The class names avoid the word, as those of mamba2 do.
"""

from typing import ClassVar

from ...layers.mixers.mamba3 import TrapezoidalStateSpace as TrapezoidalStateSpace
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "mamba3",
    summary="state space with a trapezoidal rule, turning keys and several writes a token, no FFN",
    paper="Lahoti et al. 2026, arXiv 2603.15569",
    tiny={
        "mixer": {
            "type": "mamba3",
            "head_dim": 16,
            "state_size": 8,
            "n_groups": 2,
            "is_mimo": True,
            "mimo_rank": 2,
            "use_norm": True,
            "proj_bias": True,
        }
    },
)
class HfaTrapezoidalStateSpaceConfig(ArchConfig):
    """48 blocks of the mixer alone, heads of width 64, 128 numbers of state a channel, one write a token."""

    frozen_pad_embedding: ClassVar[bool] = False

    hidden_size: int = 2048
    num_hidden_layers: int = 48
    num_attention_heads: int = 1
    mixer: Component = "mamba3"
    ffn: Component = "none"
    norm_eps: float = 1e-5
    position: str = "none"
