"""Mixed layers: any repeating pattern of registered mixers and FFNs, also a mixer of your own."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict

from ..mixers.attention import Attention as Attention
from ..mixers.gla import GatedLinearAttention as GatedLinearAttention
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
class HfaMixedConfig(ArchConfig):
    """Three GLA layers, then one of attention, repeated."""

    model_type = "hfa_mixed"

    hidden_size: int = 384
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    mixer: str | dict[str, Any] | list[Any] = field(default_factory=lambda: ["gla*3", "attention"])


class HfaMixedModel(ArchModel):
    config: HfaMixedConfig


class HfaMixedForCausalLM(ArchForCausalLM):
    config: HfaMixedConfig
    model_class = HfaMixedModel


class HfaMixedForSequenceClassification(ArchForSequenceClassification):
    config: HfaMixedConfig


class HfaMixedForTokenClassification(ArchForTokenClassification):
    config: HfaMixedConfig


class HfaMixedForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaMixedConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="mixed",
        config=HfaMixedConfig,
        model=HfaMixedModel,
        causal_lm=HfaMixedForCausalLM,
        sequence_classification=HfaMixedForSequenceClassification,
        token_classification=HfaMixedForTokenClassification,
        question_answering=HfaMixedForQuestionAnswering,
        summary="any per-layer pattern, by default three GLA layers and one of attention",
        paper="Lieber et al. 2024, arXiv 2403.19887; Ren et al. 2024, arXiv 2406.07522",
        tiny={
            "num_hidden_layers": 4,
            "mixer": ["gla", "mamba", {"type": "attention", "window": 8}, "attention"],
        },
    )
)
