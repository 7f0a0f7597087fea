"""The `hybrid` preset: RoPE with LayerNorm and a GELU MLP of 4x, pre-norm."""

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
class HfaHybridConfig(ArchConfig):
    """Between GPT-2 and Llama."""

    model_type = "hfa_hybrid"

    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    ffn: str | dict[str, Any] | list[Any] = "mlp"
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    hidden_act: str = "gelu"


class HfaHybridModel(ArchModel):
    config: HfaHybridConfig


class HfaHybridForCausalLM(ArchForCausalLM):
    config: HfaHybridConfig
    model_class = HfaHybridModel


class HfaHybridForSequenceClassification(ArchForSequenceClassification):
    config: HfaHybridConfig


class HfaHybridForTokenClassification(ArchForTokenClassification):
    config: HfaHybridConfig


class HfaHybridForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaHybridConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="hybrid",
        config=HfaHybridConfig,
        model=HfaHybridModel,
        causal_lm=HfaHybridForCausalLM,
        sequence_classification=HfaHybridForSequenceClassification,
        token_classification=HfaHybridForTokenClassification,
        question_answering=HfaHybridForQuestionAnswering,
        summary="preset: RoPE, LayerNorm, GELU MLP, pre-norm, small",
        paper="components of Radford et al. 2019 and Su et al. 2021",
        tiny={},
    )
)
