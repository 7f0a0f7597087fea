"""Gated DeltaNet 2: the delta rule with separate gates for erasing and for writing."""

from ...layers.mixers.gdn2 import GatedDeltaNet2 as GatedDeltaNet2
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "gdn2",
    summary="delta rule with separate gates for erasing and writing",
    paper="arXiv 2605.22791",
    tiny={
        "num_attention_heads": 2,
        "head_dim": 8,
        "mixer": {"type": "gdn2", "num_v_heads": 4, "allow_neg_eigval": True},
    },
)
class HfaGDN2Config(ArchConfig):
    """Sixteen heads with keys and values of width 128, RMSNorm, SwiGLU, no positions."""

    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    head_dim: int | None = 128
    mixer: Component = "gdn2"
    position: str = "none"
