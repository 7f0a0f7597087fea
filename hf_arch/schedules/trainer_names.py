"""The schedules that transformers knows by name (`cosine`, `warmup_stable_decay`, ...), as entries of the registry:
Trainer makes them, and their options are the parameters of the functions that transformers makes them by."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, get_type_hints

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers import SchedulerType, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR

from hf_arch.core.errors import ConfigError
from hf_arch.core.options import Options, compact, options
from hf_arch.core.registry import SCHEDULES
from hf_arch.schedules.base import Schedule, ScheduledRun

OF_THE_RUN = ("self", "optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "verbose")
"""Parameters that are no options: Trainer gives them."""
NEEDED = {"cosine_with_min_lr": ("min_lr", "min_lr_rate"), "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate")}
"""Options of which one has to be given, where no signature says so."""
OF_LOSSES = {SchedulerType.REDUCE_ON_PLATEAU: ReduceLROnPlateau, SchedulerType.GREEDY: GreedyLR}
"""Those that follow losses, with the classes whose parameters their functions pass on."""


class TrainerSchedule(Schedule):
    """One of transformers' own."""

    kind: ClassVar[SchedulerType]
    needed: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._factors: dict[ScheduledRun, Callable[[int], float]] = {}

    def factor(self, step: int, run: ScheduledRun) -> float:
        """By the function that transformers' scheduler of such a run has."""
        if run not in self._factors:
            scheduler = self._scheduler(run)
            assert isinstance(scheduler, LambdaLR), self.name
            self._factors[run] = scheduler.lr_lambdas[0]
        return self._factors[run](step)

    def validate(self, run: ScheduledRun) -> None:
        """Makes the scheduler of such a run, which transformers would make once the run is under way."""
        given = compact(self.options)
        if self.needed and not any(name in given for name in self.needed):
            raise ConfigError(
                f"training.lr_scheduler_kwargs: {self.name!r} needs {' or '.join(self.needed)}, "
                f"e.g. `lr_scheduler_kwargs: {{{self.needed[0]}: ...}}`; got {given!r}"
            )
        try:
            self._scheduler(run)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"training.lr_scheduler_kwargs: {' '.join(str(error).split())}") from error

    def _scheduler(self, run: ScheduledRun) -> Any:
        return get_scheduler(
            self.kind,
            optimizer=torch.optim.SGD([torch.zeros(1)], lr=run.learning_rate),
            num_warmup_steps=run.warmup,
            num_training_steps=run.steps,
            scheduler_specific_kwargs=compact(self.options),
        )


class _WarmupStableDecay(TrainerSchedule):
    @classmethod
    def branch_options(cls, decay_steps: int) -> Mapping[str, Any]:
        return {"num_decay_steps": decay_steps, "decay_type": "linear"}


def _register(kind: SchedulerType) -> None:
    function = TYPE_TO_SCHEDULER_FUNCTION[kind]
    made: Any = OF_LOSSES[kind].__init__ if kind in OF_LOSSES else function
    parameters, hints = inspect.signature(made).parameters, get_type_hints(made)
    entries = {name: entry for name, entry in parameters.items() if name not in OF_THE_RUN}
    types = {name: hints.get(name, type(entry.default)) for name, entry in entries.items()}
    required = tuple(name for name, entry in entries.items() if entry.default is entry.empty)
    types |= {name: types[name] | None for name in required}
    defaults = {name: None if name in required else entry.default for name, entry in entries.items()}
    summary = (inspect.getdoc(function) or "").split("\n\n")[0]
    facts = {"__module__": __name__, "__doc__": f"Options of {kind.value!r}.", "__annotations__": types, **defaults}
    own = options(type(f"Options_{kind.value}", (Options,), facts))
    base = _WarmupStableDecay if kind is SchedulerType.WARMUP_STABLE_DECAY else TrainerSchedule
    attributes = {
        "__module__": __name__,
        "__doc__": " ".join(summary.split()),
        "Options": own,
        "kind": kind,
        "needed": NEEDED.get(kind.value, required),
        "follows_steps": kind not in OF_LOSSES,
        "warms_up": "num_warmup_steps" in parameters,
    }
    SCHEDULES.register(kind.value)(type(f"Trainer_{kind.value}", (base,), attributes))


for _kind in SchedulerType:
    _register(_kind)
