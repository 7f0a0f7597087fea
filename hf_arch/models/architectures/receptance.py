"""What RWKV does with embeddings and head at initialisation: the embeddings are nearly nothing, for the norm that
follows to scale up, and the head is orthogonal with a gain of sqrt(V / D) / 2."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from ..causal_lm import ArchForCausalLM
from ..decoder import ArchModel


def _applies(config: Any) -> bool:
    source = None if isinstance(config.init, dict) else config.init  # a policy of a plugin is asked afterwards
    return source in config.receptance_inits


class ReceptanceModelBase(ArchModel):
    """Embeddings uniform in +-1e-4."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Embedding) and _applies(self.config):
            init.uniform_(module.weight, -1e-4, 1e-4)


class ReceptanceForCausalLMBase(ArchForCausalLM):
    """An orthogonal head."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.lm_head and _applies(self.config):
            ratio = self.config.vocab_size / self.config.hidden_size
            init.orthogonal_(module.weight, gain=0.5 * max(1.0, ratio) ** 0.5)
