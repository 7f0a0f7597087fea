"""Multi-head latent attention (DeepSeek-V2, 2024): keys and values of all heads come from one small cached vector."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..mixers.mla import LatentAttention as LatentAttention
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
class HfaMLAConfig(ArchConfig):
    """Sixteen heads of 128 + 64 features over latents of 512 numbers, RMSNorm, SwiGLU."""

    model_type = "hfa_mla"

    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    mixer: str | dict[str, Any] | list[Any] = "mla"


class HfaMLAModel(ArchModel):
    config: HfaMLAConfig


class HfaMLAForCausalLM(ArchForCausalLM):
    config: HfaMLAConfig
    model_class = HfaMLAModel


class HfaMLAForSequenceClassification(ArchForSequenceClassification):
    config: HfaMLAConfig


class HfaMLAForTokenClassification(ArchForTokenClassification):
    config: HfaMLAConfig


class HfaMLAForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaMLAConfig


ARCHITECTURE = register_architecture(
    Architecture(
        name="mla",
        config=HfaMLAConfig,
        model=HfaMLAModel,
        causal_lm=HfaMLAForCausalLM,
        sequence_classification=HfaMLAForSequenceClassification,
        token_classification=HfaMLAForTokenClassification,
        question_answering=HfaMLAForQuestionAnswering,
        summary="attention whose cache is one latent vector a token, shared by all heads",
        paper="DeepSeek-AI 2024, arXiv 2405.04434",
        tiny={
            "mixer": {
                "type": "mla",
                "q_lora_rank": 12,
                "kv_lora_rank": 20,
                "qk_nope_head_dim": 8,
                "qk_rope_head_dim": 4,
                "v_head_dim": 12,
                "rope_interleave": True,
            }
        },
    )
)
