"""Validation rows in two parts: the even rows, on which learning rates are chosen, and the odd ones, on which runs are
then compared. A rate that was chosen on the rows of a comparison would flatter whoever tried more of them.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from hf_arch.core.errors import ConfigError
from hf_arch.data.dataset import MixedDataset, TokenDataset

Part = Literal["all", "selection", "claim"]


class EveryOtherRow(Dataset[dict[str, torch.Tensor]]):
    """The rows of `dataset` from `start` on in steps of two; bytes a token are those of the whole."""

    def __init__(self, dataset: TokenDataset | MixedDataset, start: int) -> None:
        self.dataset, self.start = dataset, start

    def __len__(self) -> int:
        return len(range(self.start, len(self.dataset), 2))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.dataset[range(self.start, len(self.dataset), 2)[index]]

    @property
    def parts(self) -> list[range]:
        """The rows of each corpus, numbered as here."""
        ends = [(-(-(rows.start - self.start) // 2), -(-(rows.stop - self.start) // 2)) for rows in self.dataset.parts]
        return [range(max(first, 0), max(last, 0)) for first, last in ends]

    def __getattr__(self, name: str) -> Any:
        if name in ("dataset", "start"):  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


def validation_part(dataset: TokenDataset | MixedDataset, part: Part) -> Any:
    """The rows of this part. Raises `ConfigError` where there are too few rows to be divided."""
    if part == "all":
        return dataset
    if len(dataset) < 2:
        raise ConfigError(f"evaluation.rows: {part}: the validation text has {len(dataset)} row; at least 2 are needed")
    return EveryOtherRow(dataset, 0 if part == "selection" else 1)
