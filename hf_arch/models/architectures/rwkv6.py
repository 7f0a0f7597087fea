"""RWKV6 (Peng et al. 2024): linear attention with data-dependent decay and token shift, and the channel mix."""

from typing import ClassVar

from ...layers.ffns.channel_mix import ChannelMix as ChannelMix
from ...layers.mixers.rwkv6 import DynamicTimeMix as DynamicTimeMix
from ..configuration import ArchConfig, Component
from .declare import architecture
from .receptance import ReceptanceForCausalLMBase, ReceptanceModelBase


@architecture(
    "rwkv6",
    summary="linear attention with data-dependent decay and token shift",
    paper="Peng et al. 2024, arXiv 2404.05892",
    tiny={"mixer": {"type": "rwkv6", "shift_rank": 4, "decay_rank": 6}, "num_key_value_heads": 2},
    model=ReceptanceModelBase,
    causal_lm=ReceptanceForCausalLMBase,
)
class HfaReceptance6Config(ArchConfig):
    """Four heads with keys of half width, LayerNorm also after the embeddings, channel mix of 3.5x."""

    receptance_inits: ClassVar[tuple[str | None, ...]] = ("official",)

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    mixer: Component = "rwkv6"
    ffn: Component = "channel_mix"
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    embedding_norm: bool = True
    position: str = "none"
