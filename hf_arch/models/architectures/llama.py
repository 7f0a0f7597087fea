"""Llama (Touvron et al. 2023): RoPE, RMSNorm, SwiGLU of 8/3x, pre-norm, no biases; with GQA, windows and QK-norm
also Mistral and Qwen3."""

from ...layers.mixers.attention import Attention as Attention
from ..configuration import ArchConfig
from .declare import architecture


@architecture(
    "llama",
    summary="RoPE, RMSNorm, SwiGLU, pre-norm, no biases",
    paper="Touvron et al. 2023, arXiv 2302.13971",
    tiny={"num_key_value_heads": 2, "qk_norm": True},
)
class HfaLlamaConfig(ArchConfig):
    """Llama-like defaults at a research size."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
