"""Mixture of experts (Jiang et al. 2024): Llama's block, each token's FFN chosen from several."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..components.moe import MixtureOfExperts as MixtureOfExperts
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
class HfaMoEConfig(ArchConfig):
    """Eight SwiGLU experts, two a token, with the load-balancing loss in training."""

    model_type = "hfa_moe"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    ffn: str | dict[str, Any] | list[Any] = "moe"
    output_router_logits: bool = False


class HfaMoEModel(ArchModel):
    config: HfaMoEConfig


class HfaMoEForCausalLM(ArchForCausalLM):
    config: HfaMoEConfig
    model_class = HfaMoEModel


class HfaMoEForSequenceClassification(ArchForSequenceClassification):
    config: HfaMoEConfig


class HfaMoEForTokenClassification(ArchForTokenClassification):
    config: HfaMoEConfig


class HfaMoEForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaMoEConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="moe",
        config=HfaMoEConfig,
        model=HfaMoEModel,
        causal_lm=HfaMoEForCausalLM,
        sequence_classification=HfaMoEForSequenceClassification,
        token_classification=HfaMoEForTokenClassification,
        question_answering=HfaMoEForQuestionAnswering,
        summary="Llama's block with a router and several FFNs, of which each token passes some",
        paper="Jiang et al. 2024, arXiv 2401.04088",
        tiny={
            "num_key_value_heads": 2,
            "ffn": [
                {"type": "moe", "num_experts": 4, "intermediate_size": 24, "z_loss_coef": 1e-3},
                {
                    "type": "moe",
                    "num_experts": 8,
                    "intermediate_size": 16,
                    "gated": False,
                    "hidden_act": "gelu",
                    "num_shared_experts": 1,
                    "router": "sigmoid",
                    "score_bias": True,
                    "num_groups": 4,
                    "groups_per_token": 2,
                    "routed_scaling_factor": 1.5,
                },
            ],
        },
    )
)
