"""Linformer (Wang et al. 2020) made causal: exact attention inside blocks, learned summaries of finished ones."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..mixers.linformer import CausalLinformer as CausalLinformer
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
class HfaLinformerConfig(ArchConfig):
    """Llama's block with 16 summaries for every 128 tokens."""

    model_type = "hfa_linformer"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mixer: str | dict[str, Any] | list[Any] = "linformer"


class HfaLinformerModel(ArchModel):
    config: HfaLinformerConfig


class HfaLinformerForCausalLM(ArchForCausalLM):
    config: HfaLinformerConfig
    model_class = HfaLinformerModel


class HfaLinformerForSequenceClassification(ArchForSequenceClassification):
    config: HfaLinformerConfig


class HfaLinformerForTokenClassification(ArchForTokenClassification):
    config: HfaLinformerConfig


class HfaLinformerForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaLinformerConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="linformer",
        config=HfaLinformerConfig,
        model=HfaLinformerModel,
        causal_lm=HfaLinformerForCausalLM,
        sequence_classification=HfaLinformerForSequenceClassification,
        token_classification=HfaLinformerForTokenClassification,
        question_answering=HfaLinformerForQuestionAnswering,
        summary="attention inside blocks and to learned summaries of all finished blocks",
        paper="Wang et al. 2020, arXiv 2006.04768",
        tiny={
            "num_key_value_heads": 2,
            "mixer": [
                {"type": "linformer", "block_size": 4, "num_slots": 2},
                {"type": "linformer", "block_size": 4, "num_slots": 3, "sharing": "layers"},
            ],
        },
    )
)
