"""HGRN (Qin et al. 2023): a gated linear RNN whose forget gates are bounded from below, more so with depth."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..mixers.hgrn import HierarchicallyGatedRNN as HierarchicallyGatedRNN
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
class HfaHGRNConfig(ArchConfig):
    """As many state channels as the model is wide, RMSNorm, SwiGLU, no positions (the gates order tokens)."""

    model_type = "hfa_hgrn"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    mixer: str | dict[str, Any] | list[Any] = "hgrn"
    position: str = "none"


class HfaHGRNModel(ArchModel):
    config: HfaHGRNConfig


class HfaHGRNForCausalLM(ArchForCausalLM):
    config: HfaHGRNConfig
    model_class = HfaHGRNModel


class HfaHGRNForSequenceClassification(ArchForSequenceClassification):
    config: HfaHGRNConfig


class HfaHGRNForTokenClassification(ArchForTokenClassification):
    config: HfaHGRNConfig


class HfaHGRNForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaHGRNConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="hgrn",
        config=HfaHGRNConfig,
        model=HfaHGRNModel,
        causal_lm=HfaHGRNForCausalLM,
        sequence_classification=HfaHGRNForSequenceClassification,
        token_classification=HfaHGRNForTokenClassification,
        question_answering=HfaHGRNForQuestionAnswering,
        summary="an elementwise gated RNN with bounded forget gates",
        paper="Qin et al. 2023, arXiv 2311.04823",
        tiny={"mixer": {"type": "hgrn", "use_short_conv": True, "expand_ratio": 2}},
    )
)
