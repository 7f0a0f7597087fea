"""Gated DeltaNet (Yang et al. 2024): the delta rule with a data-dependent decay."""

from ...layers.mixers.gated_delta_net import GatedDeltaNet as GatedDeltaNet
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "gated_delta_net",
    summary="delta rule with a decay that depends on the token",
    paper="Yang et al. 2024, arXiv 2412.06464",
    tiny={
        "num_attention_heads": 2,
        "head_dim": 8,
        "mixer": {"type": "gated_delta_net", "num_v_heads": 4, "allow_neg_eigval": True},
    },
)
class HfaGatedDeltaNetConfig(ArchConfig):
    """Six heads with keys of width 256 and values of width 512, RMSNorm, SwiGLU, no positions."""

    hidden_size: int = 2048
    num_hidden_layers: int = 21
    num_attention_heads: int = 6
    head_dim: int | None = 256
    mixer: Component = "gated_delta_net"
    position: str = "none"
