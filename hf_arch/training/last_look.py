"""What is measured of a model's final weights around its score, for the audit: whether what it predicts rests on tokens
that come later, and whether scoring changed it.

A plugin may break either without an error, and its loss is then no loss of a next token: a mixer that sees ahead, a
part that learns from, or keeps something of, the rows on which it is scored. With `x` a row and `x'` the same row with
other tokens from position c on, a causal model gives equal logits before c:

    later_tokens = median over cuts c of  max |logits(x) - logits(x')|[:c] / rms(logits(x))
                   of a short row, or where it is more the smaller one of two cuts of a whole row, which has blocks
                   that a short one does not fill
    scoring_drift =                       max |logits(x) before - after the score| / rms(logits(x))
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hf_arch.training.branches import undisturbed

LONGEST = 64
"""Tokens of the row that is looked at."""
LONGEST_WHOLE = 1024
"""Of a row that is looked at whole, for a model that sees ahead in longer blocks only."""
CUTS = 6


class LastLook:
    """Holds the logits of one row from before the score. To be made right before it.

    Args:
        model: a causal LM of ours. row: int64 [B, T], real rows; the first one is taken.
    """

    def __init__(self, model: nn.Module, row: Tensor) -> None:
        self.model = model
        self.whole = row[:1, :LONGEST_WHOLE].to(next(model.parameters()).device)
        self.row = self.whole[:, :LONGEST]
        self.before = self._logits(self.row)

    def facts(self) -> dict[str, Any]:
        """`later_tokens` and `scoring_drift`, as RunRecord holds them; to be called after the score."""
        found = {"scoring_drift": _relative(self.before - self._logits(self.row), self.before)}
        length, vocabulary = self.row.shape[1], self.before.shape[-1]
        cuts = sorted({max(1, length * (index + 1) // (CUTS + 1)) for index in range(CUTS)})
        rows = self.row.repeat(len(cuts) + 1, 1)
        for index, cut in enumerate(cuts):
            rows[index, cut:] = (rows[index, cut:] + 1) % vocabulary
        *others, same = self._logits(rows) if length > 1 else [self.before]
        changes = [_relative((other - same)[:cut], same) for other, cut in zip(others, cuts, strict=False)]
        short = sorted(changes)[len(changes) // 2] if changes else 0.0
        return {**found, "later_tokens": max(short, self._in_a_whole_row())}

    def _in_a_whole_row(self) -> float:
        length = self.whole.shape[1]
        if length <= LONGEST:
            return 0.0
        same, changes = self._logits(self.whole)[0], []
        for cut in (length * 3 // 8 + 1, length * 7 // 8 - 1):
            other = self.whole.clone()
            other[:, cut:] = (other[:, cut:] + 1) % same.shape[-1]
            changes.append(_relative((self._logits(other)[0] - same)[:cut], same))
        return min(changes)

    def _logits(self, rows: Tensor) -> Tensor:
        with undisturbed(self.model):
            logits: Tensor = self.model(input_ids=rows, use_cache=False).logits
            return logits.float()


def _relative(change: Tensor, of: Tensor) -> float:
    """The largest of `change` against the rms of `of`, 0.0 where nothing changed."""
    largest = float(change.abs().max())
    return 0.0 if largest == 0.0 else largest / max(float(of.square().mean().sqrt()), torch.finfo(torch.float32).tiny)
