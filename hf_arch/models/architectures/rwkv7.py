"""RWKV7 (Peng et al. 2025): a generalised delta rule with vector decays and token shift, and a channel mix.

The class names avoid the word: transformers' generation looks for it in class names and then expects another cache
argument.
"""

from typing import ClassVar

from ...layers.ffns.channel_mix7 import ChannelMix7 as ChannelMix7
from ...layers.mixers.rwkv7 import GeneralizedDeltaTimeMix as GeneralizedDeltaTimeMix
from ..configuration import ArchConfig, Component
from .declare import architecture
from .receptance import ReceptanceForCausalLMBase, ReceptanceModelBase


@architecture(
    "rwkv7",
    summary="delta rule whose decay, removal and rate are vectors that depend on the token",
    paper="Peng et al. 2025, arXiv 2503.14456",
    tiny={
        "mixer": {"type": "rwkv7", "decay_rank": 8, "rate_rank": 6, "value_rank": 4, "gate_rank": 12},
    },
    model=ReceptanceModelBase,
    causal_lm=ReceptanceForCausalLMBase,
)
class HfaReceptance7Config(ArchConfig):
    """Heads of width 64, LayerNorm also after the embeddings, channel mix of 4x."""

    receptance_inits: ClassVar[tuple[str | None, ...]] = (None, "fla")

    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    mixer: Component = "rwkv7"
    ffn: Component = "channel_mix7"
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    embedding_norm: bool = True
    position: str = "none"
