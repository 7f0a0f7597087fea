"""In which types a model multiplies, in training and when it is scored: a part may take lower precision than the run
has, for all of its passes or for those of one mode.

    {"training": {type: share}, "scoring": {type: share}}

of the multiplications of matrix products, convolutions and attention, as torch runs them under autocast.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from hf_arch.training.compat import TorchDispatchMode

_FIRST = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
"""Matrix products, and the argument that is multiplied."""


@torch.no_grad()
def product_types(model: nn.Module, row: Tensor) -> dict[str, dict[str, float]]:
    """These shares for row, int64 [1, T]. Modes and random numbers are for the caller to restore."""
    found = {}
    for mode in ("training", "scoring"):
        model.train(mode == "training")
        with _Products() as products:
            model(input_ids=row, use_cache=False)
        total = max(products.found.total(), 1)
        found[mode] = {name: count / total for name, count in products.found.items()}
    return found


class _Products(TorchDispatchMode):
    """Adds up multiplications by the type of what is multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _FIRST:
            first = args[_FIRST[name]]
            self._add(first, first.numel() * out.shape[-1])
        elif name == "convolution":
            self._add(args[1], args[1].numel() * out.numel() // max(out.shape[1], 1))
        elif name.startswith("_scaled_dot_product"):
            self._add(args[0], 2 * args[0].numel() * args[1].shape[-2])
        return out

    def _add(self, first: Tensor, multiplications: int) -> None:
        self.found[str(first.dtype).removeprefix("torch.")] += multiplications
