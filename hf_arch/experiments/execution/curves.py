"""The curves of runs while they are trained, read from their `metrics.jsonl` as it grows, and what is left to do."""

from __future__ import annotations

import json
from bisect import bisect_left
from pathlib import Path
from typing import Any

from hf_arch.runs.files import METRICS_FILE


class Curve:
    """One run's metrics. `update` reads only what was added since; a file that became shorter is read again (a run that
    goes on cuts what lies behind its checkpoint).
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / METRICS_FILE
        self._clear()

    def _clear(self) -> None:
        self.newest: dict[str, Any] = {}
        self.tokens_per_step: float | None = None
        self._offset = 0
        self._steps: list[int] = []
        self._losses: list[float] = []

    def update(self) -> Curve:
        """Takes in the lines that are new and whole."""
        try:
            with self.file.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._clear()
                file.seek(self._offset)
                text = file.read()
        except OSError:
            self._clear()
            return self
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                self._add(row)
        return self

    def _add(self, row: dict[str, Any]) -> None:
        self.newest |= {key: value for key, value in row.items() if value is not None}
        step, tokens, loss = row.get("step"), row.get("tokens_seen"), row.get("val_loss")
        if step and tokens:
            self.tokens_per_step = tokens / step
        if step is not None and isinstance(loss, (int, float)):
            while self._steps and self._steps[-1] >= step:  # the run went on from an earlier checkpoint
                del self._steps[-1], self._losses[-1]
            self._steps.append(step)
            self._losses.append(loss)

    @property
    def validated_tokens(self) -> float | None:
        """Tokens that the run had seen at its last validation."""
        return self._steps[-1] * self.tokens_per_step if self._steps and self.tokens_per_step else None

    def loss_at(self, tokens: float) -> float | None:
        """Validation loss after so many tokens, on the line between the validations around; None outside of them."""
        if not self._steps or not self.tokens_per_step:
            return None
        step = tokens / self.tokens_per_step
        right = bisect_left(self._steps, step)
        if right == len(self._steps) or (right == 0 and self._steps[0] != step):
            return None
        if self._steps[right] == step:
            return self._losses[right]
        low, high = self._steps[right - 1], self._steps[right]
        share = (step - low) / (high - low)
        return (1 - share) * self._losses[right - 1] + share * self._losses[right]

    def ahead_of(self, baseline: Curve) -> tuple[float, float] | None:
        """(validation loss less the baseline's, tokens) at the most tokens at which both have one; None before."""
        mine, theirs = self.validated_tokens, baseline.validated_tokens
        if mine is None or theirs is None:
            return None
        tokens = min(mine, theirs)
        own, other = self.loss_at(tokens), baseline.loss_at(tokens)
        return None if own is None or other is None else (own - other, tokens)

    def seconds_left(self, steps: int | None) -> float | None:
        """Of training up to `steps` steps, at the last speed; None where that is not known."""
        done, speed = self.newest.get("step"), self.newest.get("tokens_per_second")
        if steps is None or done is None or not speed or not self.tokens_per_step:
            return None
        return max(0, steps - int(done)) * self.tokens_per_step / float(speed)
