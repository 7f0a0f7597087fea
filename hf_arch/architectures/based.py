"""Based (Arora et al. 2024): linear attention with a Taylor feature map, in turn with short-window attention."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict

from ..mixers.attention import Attention as Attention
from ..mixers.based import BasedLinearAttention as BasedLinearAttention
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
class HfaBasedConfig(ArchConfig):
    """Twelve heads; every second layer is softmax attention to the last 64 tokens, with RoPE; RMSNorm, SwiGLU."""

    model_type = "hfa_based"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mixer: str | dict[str, Any] | list[Any] = field(
        default_factory=lambda: ["based", {"type": "attention", "window": 64}]
    )


class HfaBasedModel(ArchModel):
    config: HfaBasedConfig


class HfaBasedForCausalLM(ArchForCausalLM):
    config: HfaBasedConfig
    model_class = HfaBasedModel


class HfaBasedForSequenceClassification(ArchForSequenceClassification):
    config: HfaBasedConfig


class HfaBasedForTokenClassification(ArchForTokenClassification):
    config: HfaBasedConfig


class HfaBasedForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaBasedConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="based",
        config=HfaBasedConfig,
        model=HfaBasedModel,
        causal_lm=HfaBasedForCausalLM,
        sequence_classification=HfaBasedForSequenceClassification,
        token_classification=HfaBasedForTokenClassification,
        question_answering=HfaBasedForQuestionAnswering,
        summary="Taylor linear attention in turn with short-window attention",
        paper="Arora et al. 2024, arXiv 2402.18668",
        tiny={
            "mixer": [{"type": "based", "feature_dim": 4}, {"type": "attention", "window": 8}],
            "num_key_value_heads": 2,
        },
    )
)
