"""A linear map of the last hidden states that predicts the token after the next."""

import torch
from torch import nn
from torch.nn import functional as F

from hf_arch.core.registry import LOSSES
from hf_arch.models.losses.base import AuxiliaryLoss


@LOSSES.register("idea_multi_token")
class NextButOne(AuxiliaryLoss):
    label = "MyMTP"

    def __init__(self, config, options):
        super().__init__(config, options)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, context):
        targets = F.pad(context.targets[:, 1:], (0, 1), value=-100).flatten()
        logits = context.logits(self.proj(context.hidden_states).flatten(0, 1)).float()
        weights = torch.where(targets == -100, 0.0, context.weights.max())
        return 0.3 * (F.cross_entropy(logits, targets, ignore_index=-100, reduction="none") * weights).sum()

    def training_flops(self, seq_len):
        return 2 * seq_len * self.config.hidden_size * (self.config.hidden_size + self.config.vocab_size)
