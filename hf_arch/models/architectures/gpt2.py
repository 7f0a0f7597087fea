"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, GELU MLP of 4x, biases everywhere, tied head."""

from typing import ClassVar

from ...layers.mixers.attention import Attention as Attention
from ..configuration import ArchConfig, Component
from .declare import architecture


class GPT2Block(ArchConfig):
    """What GPT-2 shares with what is made of its block."""

    ffn: Component = "mlp"
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    position: str = "learned"
    hidden_act: str = "gelu_tanh"
    attention_bias: bool = True
    mlp_bias: bool = True
    rescale_residual_init: bool = True
    tie_word_embeddings: bool = True


@architecture(
    "gpt2",
    summary="learned positions, LayerNorm, GELU MLP, biases, tied head",
    paper="Radford et al. 2019, Language Models are Unsupervised Multitask Learners",
    tiny={
        "embedding_dropout": 0.0,
        "residual_dropout": 0.0,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
class HfaGPT2Config(GPT2Block):
    """GPT-2's defaults are the 124M model."""

    frozen_pad_embedding: ClassVar[bool] = False

    vocab_size: int = 50257
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 1024
    embedding_dropout: float | int = 0.1
    residual_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
