"""MesaNet (von Oswald et al. 2025): the regression of values on keys, solved exactly at every token."""

from ...layers.mixers.mesa_net import MesaNet as MesaNet
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "mesa_net",
    summary="regression of values on keys over all tokens so far, solved at every token",
    paper="von Oswald et al. 2025, arXiv 2506.05233",
    tiny={"num_attention_heads": 2, "head_dim": 8, "mixer": {"type": "mesa_net", "use_output_gate": True}},
)
class HfaMesaNetConfig(ArchConfig):
    """16 heads of width 128, RMSNorm, SwiGLU, no positions."""

    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    head_dim: int | None = 128
    mixer: Component = "mesa_net"
    position: str = "none"
