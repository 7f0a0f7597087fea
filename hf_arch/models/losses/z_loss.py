"""z-loss (PaLM, Chowdhery et al. 2022, arXiv 2204.02311): keeps the normaliser of the softmax near one.

coefficient * mean over targets of ( log sum_v exp(logit_v) )^2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import LOSSES
from .base import LogitLoss


@options
class ZLossOptions(Options):
    """`coefficient`: PaLM's 1e-4."""

    coefficient: float = 1e-4


@LOSSES.register("z_loss")
class ZLoss(LogitLoss):
    """The square of the logits' log-sum-exp."""

    Options = ZLossOptions
    label = "Z"

    @classmethod
    def validate(cls, config: Any, options: ZLossOptions) -> None:
        check_coefficient("losses z_loss coefficient", options.coefficient)

    def of_logits(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return self.options.coefficient * (torch.logsumexp(logits.float(), -1).square() * weights).sum()


def check_coefficient(field: str, value: float) -> None:
    """Raise a ConfigError where `value` is not a finite number above 0."""
    if not 0 < value < float("inf"):
        raise ConfigError(f"{field}: {value!r} is not allowed; use a number above 0, or leave the loss out")
