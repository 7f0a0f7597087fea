"""Momentum DeltaNet: the delta rule whose corrections pass through a momentum."""

from ...layers.mixers.momentum_delta_net import MomentumDeltaNet as MomentumDeltaNet
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "momentum_delta_net",
    summary="delta rule whose corrections pass through a momentum",
    paper="arXiv 2605.05838",
    tiny={
        "num_attention_heads": 2,
        "head_dim": 8,
        "mixer": {"type": "momentum_delta_net", "num_v_heads": 4, "allow_neg_eigval": True},
    },
)
class HfaMomentumDeltaNetConfig(ArchConfig):
    """Four heads with keys of width 256 and values of width 512, RMSNorm, SwiGLU, no positions."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    head_dim: int | None = 256
    mixer: Component = "momentum_delta_net"
    position: str = "none"
