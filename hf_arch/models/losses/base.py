"""The contract of auxiliary losses: what training adds to the next-token loss, under a name of its own.

The model's `loss` in training is the next-token loss plus these; `model.auxiliary_losses` has each by its name, and
logs and results count the next-token loss alone. In evaluation none is computed. A loss sums over tokens with the
weights it is given, so that a step made of several calls is that of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ...layers.contract import ConfiguredPart, LayerContext


@dataclass(frozen=True)
class LossContext:
    """What a loss is computed from.

    Attributes:
        hidden_states: [B, T, D], the model's last ones, after the final norm.
        embeddings: [B, T, D] of the tokens; embed: more of them, ids [..., T] to [..., T, D].
        input_ids: [B, T], None where the model was given embeddings.
        targets: [B, T] int64, the next token of each, -100 where none counts.
        weights: [B, T] fp32, of each token in the loss: 1 / n at targets, 0 elsewhere.
        logits: hidden states [N, D] to logits [N, V], scaled and capped as the model's.
        layers: by layer index, the context of its last run: for a block of the loss's own.
        valid: [B, T] bool, tokens that are not padding; None where none is. documents: [B, T] integers, equal within a
            document; None where each row is one.
        exits: hidden states [B, T, D] after the final norm at each exit but the last, where `depth` has any.
        chunk_size: tokens whose logits are held at once, 0 for all.
    """

    hidden_states: Tensor
    embed: Callable[[Tensor], Tensor]
    input_ids: Tensor | None
    targets: Tensor
    weights: Tensor
    logits: Callable[[Tensor], Tensor]
    layers: Mapping[int, LayerContext]
    valid: Tensor | None = None
    documents: Tensor | None = None
    exits: Sequence[Tensor] = ()
    chunk_size: int = 0


class AuxiliaryLoss(ConfiguredPart):
    """Base of every such loss; built as `LossClass(config, options)`."""

    reads_ids: ClassVar[bool] = False
    """Whether it needs token ids."""

    def forward(self, context: LossContext) -> Tensor:
        """What is added to the loss, a scalar in fp32, its factor included."""
        raise NotImplementedError(f"{type(self).__name__} defines no `forward`")

    def training_flops(self, seq_len: int) -> float:
        """FLOPs of its forward pass over `seq_len` tokens, its Linear layers included. Inference never runs it."""
        return 0.0


class LogitLoss(AuxiliaryLoss):
    """A loss of the logits alone, which are then computed once for it and the next-token loss; subclasses write
    `of_logits`."""

    def of_logits(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """A scalar from logits [N, V], targets [N] (-100: none) and weights [N]: a sum over tokens with the weights."""
        raise NotImplementedError(f"{type(self).__name__} defines no `of_logits`")


def loss_names(config: Any) -> list[str]:
    """The name of each loss of the config: its registered one, numbered from the second of a kind on."""
    names = [spec["type"] for spec in config.losses]
    return [name if name not in names[:at] else f"{name}_{names[:at].count(name) + 1}" for at, name in enumerate(names)]
