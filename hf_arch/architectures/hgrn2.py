"""HGRN2 (Qin et al. 2024): a matrix state whose forget gates, bounded from below by depth, are its keys."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..mixers.hgrn2 import GatedStateExpansion as GatedStateExpansion
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
class HfaHGRN2Config(ArchConfig):
    """Heads of 128 state rows, RMSNorm, SwiGLU, no positions (the gates order tokens)."""

    model_type = "hfa_hgrn2"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    mixer: str | dict[str, Any] | list[Any] = "hgrn2"
    position: str = "none"


class HfaHGRN2Model(ArchModel):
    config: HfaHGRN2Config


class HfaHGRN2ForCausalLM(ArchForCausalLM):
    config: HfaHGRN2Config
    model_class = HfaHGRN2Model


class HfaHGRN2ForSequenceClassification(ArchForSequenceClassification):
    config: HfaHGRN2Config


class HfaHGRN2ForTokenClassification(ArchForTokenClassification):
    config: HfaHGRN2Config


class HfaHGRN2ForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaHGRN2Config


ARCHITECTURE = register_architecture(
    Architecture(
        name="hgrn2",
        config=HfaHGRN2Config,
        model=HfaHGRN2Model,
        causal_lm=HfaHGRN2ForCausalLM,
        sequence_classification=HfaHGRN2ForSequenceClassification,
        token_classification=HfaHGRN2ForTokenClassification,
        question_answering=HfaHGRN2ForQuestionAnswering,
        summary="a matrix state whose bounded forget gates are its keys",
        paper="Qin et al. 2024, arXiv 2404.07904",
        tiny={"mixer": {"type": "hgrn2", "use_short_conv": True, "expand_ratio": 4}, "num_key_value_heads": 2},
    )
)
