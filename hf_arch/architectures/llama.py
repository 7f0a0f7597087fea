"""Llama (Touvron et al. 2023): RoPE, RMSNorm, SwiGLU of 8/3x, pre-norm, no biases; with GQA, windows and QK-norm
also Mistral and Qwen3."""

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
class HfaLlamaConfig(ArchConfig):
    """Llama-like defaults at a research size."""

    model_type = "hfa_llama"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12


class HfaLlamaModel(ArchModel):
    config: HfaLlamaConfig


class HfaLlamaForCausalLM(ArchForCausalLM):
    config: HfaLlamaConfig
    model_class = HfaLlamaModel


class HfaLlamaForSequenceClassification(ArchForSequenceClassification):
    config: HfaLlamaConfig


class HfaLlamaForTokenClassification(ArchForTokenClassification):
    config: HfaLlamaConfig


class HfaLlamaForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaLlamaConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="llama",
        config=HfaLlamaConfig,
        model=HfaLlamaModel,
        causal_lm=HfaLlamaForCausalLM,
        sequence_classification=HfaLlamaForSequenceClassification,
        token_classification=HfaLlamaForTokenClassification,
        question_answering=HfaLlamaForQuestionAnswering,
        summary="RoPE, RMSNorm, SwiGLU, pre-norm, no biases",
        paper="Touvron et al. 2023, arXiv 2302.13971",
        tiny={"num_key_value_heads": 2, "qk_norm": True},
    )
)
