"""Logits that are computed when somebody reads them.

The training loss of a large vocabulary never holds all logits (`loss.py`). Most callers read only `loss`; a
`compute_loss` of one's own, or a trainer that reports entropy and accuracy, reads `logits` too. They get them then,
with their graph, at the cost of holding them; who does not read them pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeCausalLMOutputWithPast

from ..layers.compat import version_of


class LateLogits:
    """A call of the head that has not been made yet.

    compute: gives the logits [B, T, V]
    read: the head's parameters; a step of the optimiser in between would change the result, and is refused
    device_type: "cpu" or "cuda"; autocast is as it is now when the logits are computed
    """

    def __init__(self, compute: Callable[[], Tensor], read: nn.Module, device_type: str):
        self._compute = compute
        self._parameters = tuple(read.parameters())
        self._versions = self._version_numbers()
        self._device_type = device_type
        self._autocast = torch.is_autocast_enabled(device_type)
        self._dtype = torch.get_autocast_dtype(device_type) if self._autocast else None

    def _version_numbers(self) -> Sequence[int]:
        return [version_of(parameter) for parameter in self._parameters]

    def __call__(self) -> Tensor:
        """The logits. Raises RuntimeError where the head has been changed since the forward."""
        if self._version_numbers() != self._versions:
            raise RuntimeError(
                "`logits` were read after the head's weights changed; read them before the optimiser steps, or set "
                "`model.config.loss_chunk_size = 0` to have them computed in the forward"
            )
        with torch.autocast(self._device_type, dtype=self._dtype, enabled=self._autocast):
            return self._compute()


class _ReadsLateLogits:
    """`logits` as an attribute, by its key and in `to_tuple()`; `items()` and pytrees see what is stored."""

    @property
    def logits(self) -> Tensor | None:
        stored = self.__dict__.get("logits")
        if not isinstance(stored, LateLogits):
            return stored
        logits = stored()
        if torch.is_grad_enabled():  # without a graph they are not what a later reader may want
            self.logits = logits
        return logits

    @logits.setter
    def logits(self, value: Any) -> None:
        self.__dict__["logits"] = value

    def __getitem__(self, key: Any) -> Any:
        return self.logits if key == "logits" else super().__getitem__(key)  # type: ignore[misc]

    def __reduce__(self) -> Any:
        if isinstance(self.__dict__.get("logits"), LateLogits):
            raise TypeError("an output whose `logits` were not read cannot be pickled; read `output.logits` first")
        return super().__reduce__()


class TrainingOutput(_ReadsLateLogits, CausalLMOutputWithPast):
    """CausalLMOutputWithPast whose `logits` are computed when read."""


class MoeTrainingOutput(_ReadsLateLogits, MoeCausalLMOutputWithPast):
    """MoeCausalLMOutputWithPast whose `logits` are computed when read."""


def output_class(*, late: bool, routed: bool) -> type[CausalLMOutputWithPast | MoeCausalLMOutputWithPast]:
    """What a language model returns: `late` where its logits are computed when read, `routed` with router logits."""
    if routed:
        return MoeTrainingOutput if late else MoeCausalLMOutputWithPast
    return TrainingOutput if late else CausalLMOutputWithPast
