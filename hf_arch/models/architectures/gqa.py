"""The GPT-2 block with grouped-query attention (Ainslie et al. 2023): from multi-query (1 KV head) to multi-head."""

from ...layers.mixers.attention import Attention as Attention
from .declare import architecture
from .gpt2 import GPT2Block


@architecture(
    "gqa",
    summary="the GPT-2 block with shared key and value heads",
    paper="Ainslie et al. 2023, arXiv 2305.13245",
    tiny={"num_key_value_heads": 2},
)
class HfaGQAConfig(GPT2Block):
    """LayerNorm, GELU, learned positions, and a quarter of the KV heads."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 1024
