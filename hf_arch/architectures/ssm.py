"""S4D (Gu et al. 2022): a diagonal state space a channel, the same at every step, and an MLP."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..mixers.ssm import DiagonalStateSpace as DiagonalStateSpace
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
class HfaSSMConfig(ArchConfig):
    """64 state numbers a channel, LayerNorm, GELU, no positions (the system's dynamics order tokens)."""

    model_type = "hfa_ssm"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    mixer: str | dict[str, Any] | list[Any] = "ssm"
    ffn: str | dict[str, Any] | list[Any] = "mlp"
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    hidden_act: str = "gelu"
    position: str = "none"


class HfaSSMModel(ArchModel):
    config: HfaSSMConfig


class HfaSSMForCausalLM(ArchForCausalLM):
    config: HfaSSMConfig
    model_class = HfaSSMModel


class HfaSSMForSequenceClassification(ArchForSequenceClassification):
    config: HfaSSMConfig


class HfaSSMForTokenClassification(ArchForTokenClassification):
    config: HfaSSMConfig


class HfaSSMForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaSSMConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="ssm",
        config=HfaSSMConfig,
        model=HfaSSMModel,
        causal_lm=HfaSSMForCausalLM,
        sequence_classification=HfaSSMForSequenceClassification,
        token_classification=HfaSSMForTokenClassification,
        question_answering=HfaSSMForQuestionAnswering,
        summary="a diagonal linear state space a channel",
        paper="Gu et al. 2022, arXiv 2206.11893",
        tiny={"mixer": {"type": "ssm", "state_size": 8, "kind": "inv", "learn_input": True, "use_glu": True}},
    )
)
