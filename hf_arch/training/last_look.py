"""What is measured of a model's final weights around its score, for the audit: whether what it predicts rests on tokens
that come later or on other rows of its batch, and whether scoring changed it.

A plugin may break any of these without an error, and its loss is then no loss of a next token: a mixer that sees ahead,
statistics over a batch that are taken when it is scored, a part that learns from, or keeps something of, the rows on
which it is scored. With `x` a row and `x'` the same row with
other tokens from position c on, a causal model gives equal logits before c:

    later_tokens = median over cuts c of  max |logits(x) - logits(x')|[:c] / rms(logits(x))
                   of a short row, or where it is more the smaller one of two cuts of a whole row, which has blocks
                   that a short one does not fill
    other_rows    = rms(logits(x) in a batch - in one of other rows, as many) / rms(logits(x))
    batch_gap     = | nats a token of rows in the first batch of a score - of each row by itself |
    scoring_drift =                       max |logits(x) before - after the score| / rms(logits(x))

and of rows whose documents are to be read by themselves, with other tokens before a document that begins at c:

    across_documents =                    max |logits(x) - logits(x')|[c:] / rms(logits(x))
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
OTHERS = 5
"""How far tokens are moved in the vocabulary, for other rows."""
ALONE = 8
"""Rows of a batch that are looked at by themselves: the first and the last ones."""


class LastLook:
    """Holds the logits of one row from before the score. To be made right before it.

    Args:
        model: a causal LM of ours. row: int64 [B, T], real rows; the first one is taken. batch: int64 [B, T], rows as
            they are scored together, where that is to be looked at. documents: whether they are to be isolated.
    """

    def __init__(self, model: nn.Module, row: Tensor, batch: Tensor | None = None, documents: bool = False) -> None:
        self.model, self.batch, self.documents = model, batch, documents
        self.whole = row[:1, :LONGEST_WHOLE].to(next(model.parameters()).device)
        self.row = self.whole[:, :LONGEST]
        self.before = self._logits(self.row)
        self.other_rows = self.batch_gap = 0.0  # known with the facts

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
        self.other_rows = self._among_others(rows, same)
        self.batch_gap = self._together() if self.batch is not None and len(self.batch) > 1 else 0.0
        return {**found, "later_tokens": max(short, self._in_a_whole_row())}

    def of_a_batch(self) -> dict[str, float]:
        """`other_rows`, `batch_gap` and `across_documents`, once the facts are known."""
        across = {"across_documents": self._across_documents()} if self.documents else {}
        return {"other_rows": self.other_rows, "batch_gap": self.batch_gap, **across}

    def _across_documents(self) -> float:
        length, vocabulary = self.row.shape[1], self.before.shape[-1]
        cut = length // 2
        positions = torch.arange(length, device=self.row.device)
        positions[cut:] -= cut
        rows = self.row.repeat(2, 1)
        rows[1, :cut] = (rows[1, :cut] + 1) % vocabulary
        one, other = self._logits(rows, position_ids=positions.expand(2, -1))
        return _relative((one - other)[cut:], one)

    def _among_others(self, rows: Tensor, same: Tensor) -> float:
        """The last of these rows once more, among others; `same` are its logits."""
        if len(rows) < 2:
            return 0.0
        others = rows.clone()
        others[:-1] = (others[:-1] * 3 + OTHERS) % same.shape[-1]
        return _rms(self._logits(others)[-1] - same) / max(_rms(same), torch.finfo(torch.float32).tiny)

    def _together(self) -> float:
        assert self.batch is not None
        batch = self.batch.to(self.row.device)
        rows = sorted({*range(len(batch))[: ALONE // 2], *range(len(batch))[-ALONE // 2 :]})
        together = _nats(self._logits(batch)[rows], batch[rows])
        alone = sum(_nats(self._logits(batch[row : row + 1]), batch[row : row + 1]) for row in rows) / len(rows)
        return abs(together - alone)

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

    def _logits(self, rows: Tensor, **more: Tensor) -> Tensor:
        with undisturbed(self.model):
            logits: Tensor = self.model(input_ids=rows, use_cache=False, **more).logits
            return logits.float()


def _nats(logits: Tensor, rows: Tensor) -> float:
    """Of the next token, a mean over rows [B, T]."""
    return float(nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten()))


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _relative(change: Tensor, of: Tensor) -> float:
    """The largest of `change` against the rms of `of`, 0.0 where nothing changed."""
    largest = float(change.abs().max())
    return 0.0 if largest == 0.0 else largest / max(_rms(of), torch.finfo(torch.float32).tiny)
