"""Gated DeltaNet (Yang et al. 2024): the delta rule with a data-dependent decay."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..mixers.gated_delta_net import GatedDeltaNet as GatedDeltaNet
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
class HfaGatedDeltaNetConfig(ArchConfig):
    """Six heads with keys of width 256 and values of width 512, RMSNorm, SwiGLU, no positions."""

    model_type = "hfa_gated_delta_net"

    hidden_size: int = 2048
    num_hidden_layers: int = 21
    num_attention_heads: int = 6
    head_dim: int | None = 256
    mixer: str | dict[str, Any] | list[Any] = "gated_delta_net"
    position: str = "none"


class HfaGatedDeltaNetModel(ArchModel):
    config: HfaGatedDeltaNetConfig


class HfaGatedDeltaNetForCausalLM(ArchForCausalLM):
    config: HfaGatedDeltaNetConfig
    model_class = HfaGatedDeltaNetModel


class HfaGatedDeltaNetForSequenceClassification(ArchForSequenceClassification):
    config: HfaGatedDeltaNetConfig


class HfaGatedDeltaNetForTokenClassification(ArchForTokenClassification):
    config: HfaGatedDeltaNetConfig


class HfaGatedDeltaNetForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaGatedDeltaNetConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="gated_delta_net",
        config=HfaGatedDeltaNetConfig,
        model=HfaGatedDeltaNetModel,
        causal_lm=HfaGatedDeltaNetForCausalLM,
        sequence_classification=HfaGatedDeltaNetForSequenceClassification,
        token_classification=HfaGatedDeltaNetForTokenClassification,
        question_answering=HfaGatedDeltaNetForQuestionAnswering,
        summary="delta rule with a decay that depends on the token",
        paper="Yang et al. 2024, arXiv 2412.06464",
        tiny={
            "num_attention_heads": 2,
            "head_dim": 8,
            "mixer": {"type": "gated_delta_net", "num_v_heads": 4, "allow_neg_eigval": True},
        },
    )
)
