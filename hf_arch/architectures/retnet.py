"""RetNet (Sun et al. 2023): retention, a matrix state with one fixed decay a head, rotary queries and keys."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..mixers.retnet import Retention as Retention
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
class HfaRetNetConfig(ArchConfig):
    """Eight heads, values of double width, SwiGLU of width 2D."""

    model_type = "hfa_retnet"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    mixer: str | dict[str, Any] | list[Any] = "retnet"
    position: str = "none"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 256 * -(
                -int(4 * self.hidden_size / 3) // 256
            )  # hidden ratio 2, by GLU's two thirds
        super().__post_init__(**kwargs)


class HfaRetNetModel(ArchModel):
    config: HfaRetNetConfig


class HfaRetNetForCausalLM(ArchForCausalLM):
    config: HfaRetNetConfig
    model_class = HfaRetNetModel


class HfaRetNetForSequenceClassification(ArchForSequenceClassification):
    config: HfaRetNetConfig


class HfaRetNetForTokenClassification(ArchForTokenClassification):
    config: HfaRetNetConfig


class HfaRetNetForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaRetNetConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="retnet",
        config=HfaRetNetConfig,
        model=HfaRetNetModel,
        causal_lm=HfaRetNetForCausalLM,
        sequence_classification=HfaRetNetForSequenceClassification,
        token_classification=HfaRetNetForTokenClassification,
        question_answering=HfaRetNetForQuestionAnswering,
        summary="retention: a matrix state with one fixed decay a head",
        paper="Sun et al. 2023, arXiv 2307.08621",
        tiny={"num_key_value_heads": 2},
    )
)
