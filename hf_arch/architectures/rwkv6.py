"""RWKV6 (Peng et al. 2024): linear attention with data-dependent decay and token shift, and the channel mix."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..components.channel_mix import ChannelMix as ChannelMix
from ..mixers.rwkv6 import DynamicTimeMix as DynamicTimeMix
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
class HfaReceptance6Config(ArchConfig):
    """Four heads with keys of half width, LayerNorm also after the embeddings, channel mix of 3.5x."""

    model_type = "hfa_rwkv6"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    mixer: str | dict[str, Any] | list[Any] = "rwkv6"
    ffn: str | dict[str, Any] | list[Any] = "channel_mix"
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    embedding_norm: bool = True
    position: str = "none"


class HfaReceptance6Model(ArchModel):
    config: HfaReceptance6Config


class HfaReceptance6ForCausalLM(ArchForCausalLM):
    config: HfaReceptance6Config
    model_class = HfaReceptance6Model


class HfaReceptance6ForSequenceClassification(ArchForSequenceClassification):
    config: HfaReceptance6Config


class HfaReceptance6ForTokenClassification(ArchForTokenClassification):
    config: HfaReceptance6Config


class HfaReceptance6ForQuestionAnswering(ArchForQuestionAnswering):
    config: HfaReceptance6Config


ARCHITECTURE = register_architecture(
    Architecture(
        name="rwkv6",
        config=HfaReceptance6Config,
        model=HfaReceptance6Model,
        causal_lm=HfaReceptance6ForCausalLM,
        sequence_classification=HfaReceptance6ForSequenceClassification,
        token_classification=HfaReceptance6ForTokenClassification,
        question_answering=HfaReceptance6ForQuestionAnswering,
        summary="linear attention with data-dependent decay and token shift",
        paper="Peng et al. 2024, arXiv 2404.05892",
        tiny={"mixer": {"type": "rwkv6", "shift_rank": 4, "decay_rank": 6}, "num_key_value_heads": 2},
    )
)
