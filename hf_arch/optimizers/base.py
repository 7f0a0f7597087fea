"""What an optimiser is here: options, and how the parameters of a model become the groups of a torch optimiser.

    @OPTIMIZERS.register("lion")
    class Lion(OptimizerBuilder):
        Options = LionOptions

        def build(self, parameters, settings):
            return LionSteps(self.groups(parameters, settings), lr=settings.learning_rate, beta=self.options.beta)

`training.optim: lion` names it, `training.optim_args: {beta: 0.9}` sets its options. `group` says the settings of one
parameter: override it for learning rates of your own by layer or by kind. What comes out of `build` is checked
(`hf_arch.optimizers.check`) before anything is trained: each trainable parameter is in one group, and none decays that
is exempt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from hf_arch.core.options import Options
from hf_arch.core.registry import OPTIMIZERS
from hf_arch.layers.parametrization import Factors

PLAIN = Factors()


@dataclass(frozen=True)
class TrainedParameter:
    """One trainable parameter of a model.

    name: as in `named_parameters`. decays: whether weight decay applies to it; never for norms, biases, and what a
    module lists in `no_weight_decay`. matrix: it is the weight of a linear map inside a block whose output is an
    activation (not a step size or a decay). layer: the index of its layer; None outside of the layers.
    factors: what the model's parametrisation multiplies its learning rate, decay and epsilon by (1 without one).
    """

    name: str
    parameter: nn.Parameter
    decays: bool
    matrix: bool = False
    layer: int | None = None
    factors: Factors = PLAIN


@dataclass(frozen=True)
class OptimizerSettings:
    """What the `training` section says for every optimiser, by the names there.

    trainer: what transformers' Trainer would build by `args.optim`; kind: its class and arguments. Both are for
    transformers' own names.
    """

    learning_rate: float
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    trainer: Callable[[], torch.optim.Optimizer] | None = None
    kind: Callable[[], tuple[Any, dict[str, Any]]] | None = None


class OptimizerBuilder:
    """Base of every optimiser that `training.optim` can name. `self.options` are its parsed options."""

    Options: ClassVar[type[Options]] = Options
    follows_parametrization: ClassVar[bool] = False
    """Whether the learning rate, decay and epsilon of each group act as AdamW's do, so that muP's factors are right for
    it. Refused for a model with such factors otherwise."""
    shards: ClassVar[bool] = False
    """Whether it may step shards of parameters and share its states out (FSDP, DeepSpeed, `zero_redundancy`)."""
    needs: ClassVar[str] = "whole parameters"
    """What shards lack, in the line that refuses them."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @property
    def label(self) -> str:
        """What the start-up report calls it."""
        return registered_name(type(self))

    def group(self, parameter: TrainedParameter, settings: OptimizerSettings) -> dict[str, Any]:
        """The settings of a parameter; those with equal ones make a group. The schedule multiplies each `lr`."""
        factors = parameter.factors
        decay = settings.weight_decay * factors.weight_decay if parameter.decays else 0.0
        return {"lr": settings.learning_rate * factors.lr, "weight_decay": decay}

    def groups(self, parameters: Sequence[TrainedParameter], settings: OptimizerSettings) -> list[dict[str, Any]]:
        """The groups for a torch optimiser, those at the plain learning rate first: it is the one that is logged."""
        found: dict[tuple[Factors, bool, str], dict[str, Any]] = {}
        for entry in parameters:
            values = self.group(entry, settings)
            key = (entry.factors, entry.decays, repr(sorted(values.items(), key=lambda item: item[0])))
            found.setdefault(key, {"params": [], **values})["params"].append(entry.parameter)
        plain = settings.learning_rate or 1.0
        return sorted(found.values(), key=lambda group: abs(group.get("lr", plain) / plain - 1))

    def build(self, parameters: Sequence[TrainedParameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
        """The optimiser over these parameters. Its state has to be in `state`, by parameters, as in every optimiser of
        torch: checkpoints hold that."""
        raise NotImplementedError(f"{type(self).__name__}.build")


def registered_name(cls: type) -> str:
    """The name under which an optimiser is registered."""
    return next((name for name, entry in OPTIMIZERS.items() if entry is cls), cls.__name__)
