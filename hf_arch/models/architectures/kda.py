"""Kimi Delta Attention (Kimi Team 2025): the delta rule with a data-dependent decay for each key channel."""

from ...layers.mixers.kda import KimiDeltaAttention as KimiDeltaAttention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "kda",
    summary="delta rule with a decay for each key channel",
    paper="Kimi Team 2025, arXiv 2510.26692",
    tiny={
        "num_attention_heads": 2,
        "head_dim": 8,
        "mixer": {"type": "kda", "num_v_heads": 4, "allow_neg_eigval": True, "lower_bound": -5},
    },
)
class HfaKDAConfig(ArchConfig):
    """Sixteen heads with keys and values of width 128, RMSNorm, SwiGLU, no positions."""

    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    head_dim: int | None = 128
    mixer: Component = "kda"
    position: str = "none"
