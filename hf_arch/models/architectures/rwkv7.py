"""RWKV7 (Peng et al. 2025): a generalised delta rule with vector decays and token shift, and a channel mix.

The class names avoid the word: transformers' generation looks for it in class names and then expects another cache
argument.
"""

import torch
from torch import nn
from transformers import initialization as init

from ...layers.ffns.channel_mix7 import ChannelMix7 as ChannelMix7
from ...layers.mixers.rwkv7 import GeneralizedDeltaTimeMix as GeneralizedDeltaTimeMix
from ..causal_lm import ArchForCausalLM
from ..configuration import ArchConfig, Component
from ..decoder import ArchModel
from .declare import architecture


class _Receptance7ModelBase(ArchModel):
    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Embedding):  # nearly nothing, for the norm that follows to scale up
            init.uniform_(module.weight, -1e-4, 1e-4)


class _Receptance7ForCausalLMBase(ArchForCausalLM):
    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.lm_head:
            ratio = self.config.vocab_size / self.config.hidden_size
            init.orthogonal_(module.weight, gain=0.5 * max(1.0, ratio) ** 0.5)


@architecture(
    "rwkv7",
    summary="delta rule whose decay, removal and rate are vectors that depend on the token",
    paper="Peng et al. 2025, arXiv 2503.14456",
    tiny={
        "mixer": {"type": "rwkv7", "decay_rank": 8, "rate_rank": 6, "value_rank": 4, "gate_rank": 12},
    },
    model=_Receptance7ModelBase,
    causal_lm=_Receptance7ForCausalLMBase,
)
class HfaReceptance7Config(ArchConfig):
    """Heads of width 64, LayerNorm also after the embeddings, channel mix of 4x."""

    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    mixer: Component = "rwkv7"
    ffn: Component = "channel_mix7"
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    embedding_norm: bool = True
    position: str = "none"
