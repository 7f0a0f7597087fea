"""GSA (Zhang et al. 2024): softmax attention to a bounded number of slots that forget."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..mixers.gsa import GatedSlotAttention as GatedSlotAttention
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
class HfaGSAConfig(ArchConfig):
    """Four heads of 64 slots, RMSNorm, SwiGLU, no positions (the gates order tokens)."""

    model_type = "hfa_gsa"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    mixer: str | dict[str, Any] | list[Any] = "gsa"
    position: str = "none"


class HfaGSAModel(ArchModel):
    config: HfaGSAConfig


class HfaGSAForCausalLM(ArchForCausalLM):
    config: HfaGSAConfig
    model_class = HfaGSAModel


class HfaGSAForSequenceClassification(ArchForSequenceClassification):
    config: HfaGSAConfig


class HfaGSAForTokenClassification(ArchForTokenClassification):
    config: HfaGSAConfig


class HfaGSAForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaGSAConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="gsa",
        config=HfaGSAConfig,
        model=HfaGSAModel,
        causal_lm=HfaGSAForCausalLM,
        sequence_classification=HfaGSAForSequenceClassification,
        token_classification=HfaGSAForTokenClassification,
        question_answering=HfaGSAForQuestionAnswering,
        summary="softmax attention to memory slots that forget",
        paper="Zhang et al. 2024, arXiv 2409.07146",
        tiny={
            "mixer": {"type": "gsa", "num_slots": 6, "feature_map": "t2r", "use_short_conv": True},
            "num_key_value_heads": 2,
        },
    )
)
