"""HGRN2 (Qin et al. 2024): a matrix state whose forget gates, bounded from below by depth, are its keys."""

from ...layers.mixers.hgrn2 import GatedStateExpansion as GatedStateExpansion
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "hgrn2",
    summary="a matrix state whose bounded forget gates are its keys",
    paper="Qin et al. 2024, arXiv 2404.07904",
    tiny={"mixer": {"type": "hgrn2", "use_short_conv": True, "expand_ratio": 4}, "num_key_value_heads": 2},
)
class HfaHGRN2Config(ArchConfig):
    """Heads of 128 state rows, RMSNorm, SwiGLU, no positions (the gates order tokens)."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    mixer: Component = "hgrn2"
    position: str = "none"
