"""Mamba (Gu & Dao 2023): selective state-space blocks, no attention, no FFN.

The class names avoid the word: transformers' generation looks for it in class names and then expects another cache
argument.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from ..mixers.mamba import SelectiveStateSpace as SelectiveStateSpace
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
class HfaSelectiveSSMConfig(ArchConfig):
    """Mamba's published defaults: 48 blocks of the mixer alone."""

    model_type = "hfa_mamba"
    frozen_pad_embedding: ClassVar[bool] = False

    hidden_size: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 1
    mixer: str | dict[str, Any] | list[Any] = "mamba"
    ffn: str | dict[str, Any] | list[Any] = "none"
    norm_eps: float = 1e-5
    position: str = "none"
    tie_word_embeddings: bool = True


class HfaSelectiveSSMModel(ArchModel):
    config: HfaSelectiveSSMConfig


class HfaSelectiveSSMForCausalLM(ArchForCausalLM):
    config: HfaSelectiveSSMConfig
    model_class = HfaSelectiveSSMModel


class HfaSelectiveSSMForSequenceClassification(ArchForSequenceClassification):
    config: HfaSelectiveSSMConfig


class HfaSelectiveSSMForTokenClassification(ArchForTokenClassification):
    config: HfaSelectiveSSMConfig


class HfaSelectiveSSMForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaSelectiveSSMConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="mamba",
        config=HfaSelectiveSSMConfig,
        model=HfaSelectiveSSMModel,
        causal_lm=HfaSelectiveSSMForCausalLM,
        sequence_classification=HfaSelectiveSSMForSequenceClassification,
        token_classification=HfaSelectiveSSMForTokenClassification,
        question_answering=HfaSelectiveSSMForQuestionAnswering,
        summary="selective state space: N numbers a channel, no attention, no FFN",
        paper="Gu & Dao 2023, arXiv 2312.00752",
        tiny={"num_hidden_layers": 2},
    )
)
