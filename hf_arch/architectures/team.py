"""The `team` preset: a Llama-like model (RoPE, RMSNorm, SwiGLU, pre-norm) at a small research size."""

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
class HfaTeamConfig(ArchConfig):
    """A small Llama-like preset."""

    model_type = "hfa_team"

    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 8


class HfaTeamModel(ArchModel):
    config: HfaTeamConfig


class HfaTeamForCausalLM(ArchForCausalLM):
    config: HfaTeamConfig
    model_class = HfaTeamModel


class HfaTeamForSequenceClassification(ArchForSequenceClassification):
    config: HfaTeamConfig


class HfaTeamForTokenClassification(ArchForTokenClassification):
    config: HfaTeamConfig


class HfaTeamForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaTeamConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="team",
        config=HfaTeamConfig,
        model=HfaTeamModel,
        causal_lm=HfaTeamForCausalLM,
        sequence_classification=HfaTeamForSequenceClassification,
        token_classification=HfaTeamForTokenClassification,
        question_answering=HfaTeamForQuestionAnswering,
        summary="preset: RoPE, RMSNorm, SwiGLU, pre-norm, small",
        paper="components of Touvron et al. 2023, arXiv 2302.13971",
        tiny={},
    )
)
