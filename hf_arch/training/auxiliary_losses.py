"""The auxiliary losses of a run by name, kept apart from the loss that runs are compared by.

A model adds them to what it is trained on (`hf_arch.models.losses`). The logged `loss`, and with it `final_train_loss`,
is the next-token loss alone; each of them is logged as `loss_<name>`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class AuxiliaryLosses:
    """Sums of them since the last log, in the scale in which Trainer adds up its loss."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self._of_step: dict[str, Tensor] = {}

    def add(self, losses: dict[str, Tensor], factor: float) -> None:
        """Those of one micro-batch."""
        for name, value in losses.items():
            self._of_step[name] = self._of_step.get(name, torch.zeros_like(value)) + value * factor

    def end_step(self, taken: bool) -> None:
        """The step is over; one that was skipped counts nothing."""
        if taken:
            for name, value in self._of_step.items():
                self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self._of_step = {}

    def take(self, accelerator: Any, steps: int) -> dict[str, float]:
        """The means over `steps` steps and all processes, by name; the sums start anew."""
        if not self.sums or steps < 1:
            self.sums = {}
            return {}
        names = sorted(self.sums)
        values = accelerator.gather(torch.stack([self.sums[name] for name in names])[None]).mean(0) / steps
        self.sums = {}
        return dict(zip(names, values.tolist(), strict=True))

    def state(self) -> dict[str, float]:
        """The sums as numbers, for a checkpoint."""
        return {name: value.item() for name, value in self.sums.items()}

    def load_state(self, state: dict[str, float], device: Any) -> None:
        """The sums of a checkpoint."""
        self.sums = {name: torch.tensor(value, device=device) for name, value in state.items()}
