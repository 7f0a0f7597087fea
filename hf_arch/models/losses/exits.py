"""Exits after each pass of a loop (Ouro, Zhu et al. 2025, arXiv 2510.25741): every pass predicts, a gate weighs them.

With h_r the final norm's output after pass r of R, for each token

    lambda_r = sigmoid(w . h_r),   p_r = lambda_r prod_{s < r} (1 - lambda_s),   p_R = prod_{s < R} (1 - lambda_s)
    loss = sum_r p_r CE_r - entropy * H(p),   H(p) = - sum_r p_r log p_r

The next-token loss is CE_R, the last pass's; what this adds is the difference to it. Inference runs all passes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import LOSSES
from ...layers.streams.base import check_finite
from ..loss import IGNORE_INDEX
from .base import AuxiliaryLoss, LossContext


@options
class ExitsOptions(Options):
    """`entropy`: the factor of the entropy of the exits, which keeps the gate from choosing one pass early."""

    entropy: float = 0.1


@LOSSES.register("exits")
class ExitsLoss(AuxiliaryLoss):
    """The expected loss over the exits of a loop in place of the last one's alone."""

    Options = ExitsOptions
    label = "Exits"

    def __init__(self, config: Any, options: ExitsOptions):
        super().__init__(config, options)
        self.gate = nn.Linear(config.hidden_size, 1, bias=False)
        self.passes = _passes(config)

    @classmethod
    def validate(cls, config: Any, options: ExitsOptions) -> None:
        check_finite("losses exits entropy", options.entropy, 0.0)
        if _passes(config) < 2:
            raise ConfigError(
                f"losses exits: depth {config.depth['type']!r} has one exit, the last layer; use depth loop, with the "
                "loop up to the last layer"
            )

    def forward(self, context: LossContext) -> Tensor:
        states = torch.stack([*context.exits, context.hidden_states.to(context.exits[0].device)])
        chances = exit_log_chances(self.gate(states[:-1]).squeeze(-1).float())
        rows = states.flatten(1, 2).transpose(0, 1)  # [B T, R, D]
        targets, weights = (x.flatten().to(rows.device) for x in (context.targets, context.weights))

        def part(rows: Tensor, log_p: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
            logits = context.logits(rows.flatten(0, 1)).float()
            each = F.cross_entropy(
                logits, targets.repeat_interleave(self.passes), ignore_index=IGNORE_INDEX, reduction="none"
            ).view(-1, self.passes)
            added = (log_p.exp() * (each + self.options.entropy * log_p)).sum(-1) - each[:, -1]
            return (added * weights).sum()

        size = context.chunk_size or len(rows)
        pieces = zip(*(x.split(size) for x in (rows, chances.flatten(1).T, targets, weights)), strict=True)
        sums = [checkpoint(part, *each, use_reentrant=False) if context.chunk_size else part(*each) for each in pieces]
        return torch.stack(sums).sum()

    def training_flops(self, seq_len: int) -> float:
        """The head after every pass, and the gate after all but the last."""
        width = self.config.hidden_size
        return 2.0 * seq_len * width * (self.passes * self.config.vocab_size + self.passes - 1)


def exit_log_chances(gates: Tensor) -> Tensor:
    """log p [R, ...] of each exit from the logits of the gates [R - 1, ...] after all passes but the last."""
    stay = F.logsigmoid(-gates).cumsum(0)
    before = torch.cat((torch.zeros_like(stay[:1]), stay))
    return before + torch.cat((F.logsigmoid(gates), torch.zeros_like(stay[:1])))


def _passes(config: Any) -> int:
    depth, given = config.depth_spec
    return 1 + len(depth.exits(config, given))
