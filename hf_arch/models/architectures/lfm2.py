"""LFM2 (Liquid AI 2025): gated short convolutions with a layer of attention now and then."""

from dataclasses import field

from ...layers.mixers.attention import Attention as Attention
from ...layers.mixers.gated_conv import GatedConvolution as GatedConvolution
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "lfm2",
    summary="gated convolutions over three tokens, every third layer of attention",
    paper="Liquid AI 2025, LFM2",
    tiny={
        "num_key_value_heads": 2,
        "mixer": [{"type": "gated_conv", "bias": True}, "attention"],
    },
)
class HfaLfm2Config(ArchConfig):
    """Two convolutions, then grouped-query attention with QK-norm, repeated; RMSNorm, SwiGLU."""

    hidden_size: int = 1024
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    mixer: Component = field(default_factory=lambda: ["gated_conv*2", "attention"])
    qk_norm: bool = True
    norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
