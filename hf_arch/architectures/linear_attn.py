"""Linear attention (Katharopoulos et al. 2020): a matrix state without decay, and a choice of feature maps."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..mixers.linear_attn import LinearAttention as LinearAttention
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
class HfaLinearAttentionConfig(ArchConfig):
    """Four heads with learned product feature maps, RMSNorm, SwiGLU, no positions."""

    model_type = "hfa_linear_attn"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    mixer: str | dict[str, Any] | list[Any] = "linear_attn"
    position: str = "none"


class HfaLinearAttentionModel(ArchModel):
    config: HfaLinearAttentionConfig


class HfaLinearAttentionForCausalLM(ArchForCausalLM):
    config: HfaLinearAttentionConfig
    model_class = HfaLinearAttentionModel


class HfaLinearAttentionForSequenceClassification(ArchForSequenceClassification):
    config: HfaLinearAttentionConfig


class HfaLinearAttentionForTokenClassification(ArchForTokenClassification):
    config: HfaLinearAttentionConfig


class HfaLinearAttentionForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaLinearAttentionConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="linear_attn",
        config=HfaLinearAttentionConfig,
        model=HfaLinearAttentionModel,
        causal_lm=HfaLinearAttentionForCausalLM,
        sequence_classification=HfaLinearAttentionForSequenceClassification,
        token_classification=HfaLinearAttentionForTokenClassification,
        question_answering=HfaLinearAttentionForQuestionAnswering,
        summary="linear attention without decay, any feature map",
        paper="Katharopoulos et al. 2020, arXiv 2006.16236",
        tiny={
            "mixer": {
                "type": "linear_attn",
                "feature_map": "hedgehog",
                "norm_q": True,
                "norm_k": True,
                "normalize": True,
            },
            "num_key_value_heads": 2,
        },
    )
)
