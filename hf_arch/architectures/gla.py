"""Gated linear attention (Yang et al. 2023): a matrix state whose rows decay by a data-dependent gate."""

from typing import Any

from huggingface_hub.dataclasses import strict

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
class HfaGLAConfig(ArchConfig):
    """Four heads with keys of half width, RMSNorm, SwiGLU, no positions (the decay orders tokens)."""

    model_type = "hfa_gla"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    mixer: str | dict[str, Any] | list[Any] = "gla"
    position: str = "none"


class HfaGLAModel(ArchModel):
    config: HfaGLAConfig


class HfaGLAForCausalLM(ArchForCausalLM):
    config: HfaGLAConfig
    model_class = HfaGLAModel


class HfaGLAForSequenceClassification(ArchForSequenceClassification):
    config: HfaGLAConfig


class HfaGLAForTokenClassification(ArchForTokenClassification):
    config: HfaGLAConfig


class HfaGLAForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaGLAConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="gla",
        config=HfaGLAConfig,
        model=HfaGLAModel,
        causal_lm=HfaGLAForCausalLM,
        sequence_classification=HfaGLAForSequenceClassification,
        token_classification=HfaGLAForTokenClassification,
        question_answering=HfaGLAForQuestionAnswering,
        summary="linear attention with a data-dependent vector decay",
        paper="Yang et al. 2023, arXiv 2312.06635",
        tiny={"mixer": {"type": "gla", "use_short_conv": True}, "num_key_value_heads": 2},
    )
)
