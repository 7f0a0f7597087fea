"""The GPT-2 block with grouped-query attention (Ainslie et al. 2023): from multi-query (1 KV head) to multi-head."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..mixers.attention import Attention as Attention
from ..modeling.configuration import ArchConfig
from ..modeling.decoder import (
    ArchForCausalLM,
    ArchForQuestionAnswering,
    ArchForSequenceClassification,
    ArchForTokenClassification,
    ArchModel,
)
from .base import Architecture, register_architecture


@strict
class HfaGQAConfig(ArchConfig):
    """LayerNorm, GELU, learned positions, and a quarter of the KV heads."""

    model_type = "hfa_gqa"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 1024
    ffn: str | dict[str, Any] | list[Any] = "mlp"
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    position: str = "learned"
    hidden_act: str = "gelu_tanh"
    attention_bias: bool = True
    mlp_bias: bool = True
    rescale_residual_init: bool = True
    tie_word_embeddings: bool = True


class HfaGQAModel(ArchModel):
    config: HfaGQAConfig


class HfaGQAForCausalLM(ArchForCausalLM):
    config: HfaGQAConfig
    model_class = HfaGQAModel


class HfaGQAForSequenceClassification(ArchForSequenceClassification):
    config: HfaGQAConfig


class HfaGQAForTokenClassification(ArchForTokenClassification):
    config: HfaGQAConfig


class HfaGQAForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaGQAConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="gqa",
        config=HfaGQAConfig,
        model=HfaGQAModel,
        causal_lm=HfaGQAForCausalLM,
        sequence_classification=HfaGQAForSequenceClassification,
        token_classification=HfaGQAForTokenClassification,
        question_answering=HfaGQAForQuestionAnswering,
        summary="the GPT-2 block with shared key and value heads",
        paper="Ainslie et al. 2023, arXiv 2305.13245",
        tiny={"num_key_value_heads": 2},
    )
)
