"""DeltaNet (Yang et al. 2024): linear attention whose state is corrected towards each new value (the delta rule)."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..mixers.delta_net import DeltaNet as DeltaNet
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
class HfaDeltaNetConfig(ArchConfig):
    """Eight heads with short convolutions, RMSNorm, SwiGLU, no positions."""

    model_type = "hfa_delta_net"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    mixer: str | dict[str, Any] | list[Any] = "delta_net"
    position: str = "none"


class HfaDeltaNetModel(ArchModel):
    config: HfaDeltaNetConfig


class HfaDeltaNetForCausalLM(ArchForCausalLM):
    config: HfaDeltaNetConfig
    model_class = HfaDeltaNetModel


class HfaDeltaNetForSequenceClassification(ArchForSequenceClassification):
    config: HfaDeltaNetConfig


class HfaDeltaNetForTokenClassification(ArchForTokenClassification):
    config: HfaDeltaNetConfig


class HfaDeltaNetForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaDeltaNetConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="delta_net",
        config=HfaDeltaNetConfig,
        model=HfaDeltaNetModel,
        causal_lm=HfaDeltaNetForCausalLM,
        sequence_classification=HfaDeltaNetForSequenceClassification,
        token_classification=HfaDeltaNetForTokenClassification,
        question_answering=HfaDeltaNetForQuestionAnswering,
        summary="delta rule: linear attention that replaces what it stored",
        paper="Yang et al. 2024, arXiv 2406.06484",
        tiny={
            "mixer": {"type": "delta_net", "use_output_gate": True, "allow_neg_eigval": True},
            "num_key_value_heads": 2,
        },
    )
)
