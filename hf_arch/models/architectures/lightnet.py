"""LightNet (Qin et al. 2024): a matrix state that is a running softmax average over time."""

from ...layers.mixers.lightnet import LightNet as LightNet
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "lightnet",
    summary="linear attention over running softmax averages of the values",
    paper="Qin et al. 2024, arXiv 2405.21022",
    tiny={"mixer": {"type": "lightnet", "use_short_conv": True, "expand_ratio": 4, "gate_low_rank_dim": 6}},
)
class HfaLightNetConfig(ArchConfig):
    """Heads of 128 state rows, RMSNorm, SwiGLU, no positions (the averages order tokens)."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    mixer: Component = "lightnet"
    position: str = "none"
