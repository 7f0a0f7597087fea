"""A post-norm GPT for characters: learned positions, LayerNorm after each branch, GELU MLP of 4x, biases everywhere."""

from typing import Any, ClassVar

from ...layers.mixers.attention import Attention as Attention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "chargpt",
    summary="post-norm GPT for characters, with variants A, B and C",
    paper="Vaswani et al. 2017, arXiv 1706.03762",
)
class HfaCharGPTConfig(ArchConfig):
    """Context 64, 8 layers of width 384; trained with batches of 128 at a learning rate of 3e-4 for 5000 steps.

    `VARIANTS` holds the larger ones: A (batch 64, 3e-5), B (batch 16 x 8 accumulation steps, 3e-4), C (32 x 8, 6e-4).
    With 65 characters they have 14.3M, 85.3M, 128.1M and 171.0M parameters.
    """

    frozen_pad_embedding: ClassVar[bool] = False

    vocab_size: int = 65
    hidden_size: int = 384
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    max_position_embeddings: int = 64
    ffn: Component = "mlp"
    norm: str = "layernorm"
    norm_position: str = "post"
    norm_eps: float = 1e-5
    position: str = "learned"
    hidden_act: str = "gelu"
    attention_bias: bool = True
    mlp_bias: bool = True
    embedding_dropout: float | int = 0.2
    residual_dropout: float | int = 0.2
    attention_dropout: float | int = 0.2
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


_WIDE = {"hidden_size": 768, "num_attention_heads": 12}
_DROPOUTS = ("embedding_dropout", "residual_dropout", "attention_dropout")
VARIANTS: dict[str, dict[str, Any]] = {
    "A": {**_WIDE, "num_hidden_layers": 12, "max_position_embeddings": 128, **dict.fromkeys(_DROPOUTS, 0.2)},
    "B": {**_WIDE, "num_hidden_layers": 18, "max_position_embeddings": 512, **dict.fromkeys(_DROPOUTS, 0.1)},
    "C": {**_WIDE, "num_hidden_layers": 24, "max_position_embeddings": 1024, **dict.fromkeys(_DROPOUTS, 0.1)},
}
"""Config values of the larger models."""
