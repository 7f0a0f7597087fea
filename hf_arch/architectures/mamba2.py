"""Mamba-2 (Dao & Gu 2024): selective state space with one decay a head, no attention, no FFN.

The class names avoid the word: transformers' generation looks for it in class names and then expects another cache
argument.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from ..mixers.mamba2 import StateSpaceDual as StateSpaceDual
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
class HfaStateSpaceDualConfig(ArchConfig):
    """The published 130M model: 24 blocks of the mixer alone, heads of width 64, 128 numbers of state a channel."""

    model_type = "hfa_mamba2"
    frozen_pad_embedding: ClassVar[bool] = False

    hidden_size: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 1
    mixer: str | dict[str, Any] | list[Any] = "mamba2"
    ffn: str | dict[str, Any] | list[Any] = "none"
    norm_eps: float = 1e-5
    position: str = "none"
    tie_word_embeddings: bool = True


class HfaStateSpaceDualModel(ArchModel):
    config: HfaStateSpaceDualConfig


class HfaStateSpaceDualForCausalLM(ArchForCausalLM):
    config: HfaStateSpaceDualConfig
    model_class = HfaStateSpaceDualModel


class HfaStateSpaceDualForSequenceClassification(ArchForSequenceClassification):
    config: HfaStateSpaceDualConfig


class HfaStateSpaceDualForTokenClassification(ArchForTokenClassification):
    config: HfaStateSpaceDualConfig


class HfaStateSpaceDualForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaStateSpaceDualConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="mamba2",
        config=HfaStateSpaceDualConfig,
        model=HfaStateSpaceDualModel,
        causal_lm=HfaStateSpaceDualForCausalLM,
        sequence_classification=HfaStateSpaceDualForSequenceClassification,
        token_classification=HfaStateSpaceDualForTokenClassification,
        question_answering=HfaStateSpaceDualForQuestionAnswering,
        summary="selective state space with one decay a head and a matrix state, no FFN",
        paper="Dao & Gu 2024, arXiv 2405.21060",
        tiny={
            "mixer": {
                "type": "mamba2",
                "head_dim": 16,
                "state_size": 8,
                "n_groups": 2,
                "proj_bias": True,
                "D_has_hdim": True,
            }
        },
    )
)
