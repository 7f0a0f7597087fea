"""Preconditioned Gated DeltaNet: Gated DeltaNet that writes with a preconditioned key."""

from ...layers.mixers.precond_gated_delta_net import PrecondGatedDeltaNet as PrecondGatedDeltaNet
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "precond_gated_delta_net",
    summary="delta rule with a preconditioned written key",
    paper="arXiv 2604.21100",
    tiny={
        "num_attention_heads": 2,
        "head_dim": 8,
        "mixer": {"type": "precond_gated_delta_net", "num_v_heads": 4, "allow_neg_eigval": True},
    },
)
class HfaPrecondGatedDeltaNetConfig(ArchConfig):
    """Six heads with keys of width 256 and values of width 512, RMSNorm, SwiGLU, no positions."""

    hidden_size: int = 2048
    num_hidden_layers: int = 21
    num_attention_heads: int = 6
    head_dim: int | None = 256
    mixer: Component = "precond_gated_delta_net"
    position: str = "none"
