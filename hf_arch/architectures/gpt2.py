"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, GELU MLP of 4x, biases everywhere, tied head."""

from typing import Any, ClassVar

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
class HfaGPT2Config(ArchConfig):
    """GPT-2's defaults are the 124M model."""

    model_type = "hfa_gpt2"
    frozen_pad_embedding: ClassVar[bool] = False

    vocab_size: int = 50257
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 1024
    ffn: str | dict[str, Any] | list[Any] = "mlp"
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    position: str = "learned"
    hidden_act: str = "gelu_tanh"
    attention_bias: bool = True
    mlp_bias: bool = True
    embedding_dropout: float | int = 0.1
    residual_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    rescale_residual_init: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256


class HfaGPT2Model(ArchModel):
    config: HfaGPT2Config


class HfaGPT2ForCausalLM(ArchForCausalLM):
    config: HfaGPT2Config
    model_class = HfaGPT2Model


class HfaGPT2ForSequenceClassification(ArchForSequenceClassification):
    config: HfaGPT2Config


class HfaGPT2ForTokenClassification(ArchForTokenClassification):
    config: HfaGPT2Config


class HfaGPT2ForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaGPT2Config


ARCHITECTURE = register_architecture(
    Architecture(
        name="gpt2",
        config=HfaGPT2Config,
        model=HfaGPT2Model,
        causal_lm=HfaGPT2ForCausalLM,
        sequence_classification=HfaGPT2ForSequenceClassification,
        token_classification=HfaGPT2ForTokenClassification,
        question_answering=HfaGPT2ForQuestionAnswering,
        summary="learned positions, LayerNorm, GELU MLP, biases, tied head",
        paper="Radford et al. 2019, Language Models are Unsupervised Multitask Learners",
        tiny={
            "embedding_dropout": 0.0,
            "residual_dropout": 0.0,
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    )
)
