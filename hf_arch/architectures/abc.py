"""ABC (Peng et al. 2021): softmax attention to slots that are running averages of keys and values."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..mixers.abc import BoundedMemoryAttention as BoundedMemoryAttention
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
class HfaABCConfig(ArchConfig):
    """Four heads of 64 slots with rotary keys of half width, RMSNorm, SwiGLU."""

    model_type = "hfa_abc"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    mixer: str | dict[str, Any] | list[Any] = "abc"
    position: str = "none"


class HfaABCModel(ArchModel):
    config: HfaABCConfig


class HfaABCForCausalLM(ArchForCausalLM):
    config: HfaABCConfig
    model_class = HfaABCModel


class HfaABCForSequenceClassification(ArchForSequenceClassification):
    config: HfaABCConfig


class HfaABCForTokenClassification(ArchForTokenClassification):
    config: HfaABCConfig


class HfaABCForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaABCConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="abc",
        config=HfaABCConfig,
        model=HfaABCModel,
        causal_lm=HfaABCForCausalLM,
        sequence_classification=HfaABCForSequenceClassification,
        token_classification=HfaABCForTokenClassification,
        question_answering=HfaABCForQuestionAnswering,
        summary="softmax attention to memory slots of running averages",
        paper="Peng et al. 2021, arXiv 2110.02488",
        tiny={"mixer": {"type": "abc", "num_slots": 6, "use_short_conv": True}, "num_key_value_heads": 2},
    )
)
