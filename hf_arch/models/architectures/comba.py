"""Comba (Hu et al. 2025): the gated delta rule with a correction of the state and of the output."""

from ...layers.mixers.comba import Comba as Comba
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "comba",
    summary="gated delta rule that corrects the query as well",
    paper="Hu et al. 2025, arXiv 2506.02475",
    tiny={
        "num_attention_heads": 2,
        "head_dim": 8,
        "mixer": {"type": "comba", "num_v_heads": 4},
    },
)
class HfaCombaConfig(ArchConfig):
    """Six heads with keys of width 256 and values of width 512, RMSNorm, SwiGLU, no positions."""

    hidden_size: int = 2048
    num_hidden_layers: int = 21
    num_attention_heads: int = 6
    head_dim: int | None = 256
    mixer: Component = "comba"
    position: str = "none"
