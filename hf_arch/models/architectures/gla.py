"""Gated linear attention (Yang et al. 2023): a matrix state whose rows decay by a data-dependent gate."""

from ...layers.mixers.gla import GatedLinearAttention as GatedLinearAttention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "gla",
    summary="linear attention with a data-dependent vector decay",
    paper="Yang et al. 2023, arXiv 2312.06635",
    tiny={"mixer": {"type": "gla", "use_short_conv": True}, "num_key_value_heads": 2},
)
class HfaGLAConfig(ArchConfig):
    """Four heads with keys of half width, RMSNorm, SwiGLU, no positions (the decay orders tokens)."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    mixer: Component = "gla"
    position: str = "none"
