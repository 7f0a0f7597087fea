"""Two-level cycles (HRM, Wang et al. 2025, arXiv 2506.21734; transformers' HrmText): a fast and a slow module.

The first `low` layers are the module L, the others the module H. From z_H the embeddings and z_L a constant,

    high_cycles times:   low_cycles times:  z_L = norm_L( L(z_L + z_H) )
                         z_H = norm( H(z_H + z_L) )

with the model's final norm behind H, and the head on the last z_H. `num_hidden_layers` counts the layers of both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import DEPTHS, NORMS
from ..streams.base import State, check_whole
from .base import Depth, check_one_tensor


@options
class CyclesOptions(Options):
    """`low`: layers of the fast module, None = half of all. `low_cycles`: of each slow cycle; `high_cycles`: slow ones.
    `trained`: how many of the last low cycles of each slow cycle gradients go through, 1 for those that the list leaves
    out at its start; None = all."""

    low: int | None = None
    low_cycles: int = 3
    high_cycles: int = 2
    trained: list[int] | None = None


@DEPTHS.register("cycles")
class CyclesDepth(Depth):
    """The fast module several times, then the slow one; all that several times."""

    Options = CyclesOptions
    label = "Cycles"

    def __init__(self, config: Any, options: CyclesOptions):
        super().__init__(config, options)
        self.low_norm = NORMS.get(config.norm, "norm")(config.hidden_size, config.norm_eps)
        self.low_start = nn.Parameter(torch.empty(config.hidden_size), requires_grad=False)
        """z_L before the first run [D], a constant."""
        self.ends = dict(_module_ends(config, options))

    @classmethod
    def validate(cls, config: Any, options: CyclesOptions) -> None:
        count = config.num_hidden_layers
        if count < 2 or not 0 < low_layers(config, options) < count:
            raise ConfigError(
                f"depth cycles low: {low_layers(config, options)} of {count} layers is not allowed; use "
                f"{f'1 to {count - 1}' if count > 1 else 'num_hidden_layers 2 or more'}"
            )
        check_whole("depth cycles low_cycles", options.low_cycles)
        check_whole("depth cycles high_cycles", options.high_cycles)
        check_one_tensor("depth cycles", config)
        given = options.trained
        if given is not None:
            allowed = all(isinstance(each, int) and 1 <= each <= options.low_cycles for each in given)
            if not given or len(given) > options.high_cycles or not allowed:
                raise ConfigError(
                    f"depth cycles trained: {given} is not allowed; use 1 to {options.high_cycles} numbers from 1 to "
                    f"{options.low_cycles}, the low cycles"
                )

    @classmethod
    def plan(cls, config: Any, options: CyclesOptions) -> list[int]:
        layers, low = list(range(config.num_hidden_layers)), low_layers(config, options)
        return (layers[:low] * options.low_cycles + layers[low:]) * options.high_cycles

    @classmethod
    def normed_runs(cls, config: Any, options: CyclesOptions) -> frozenset[int]:
        ends = _module_ends(config, options)
        return frozenset(run for run, cycle in ends[:-1] if cycle == options.low_cycles)

    @classmethod
    def untrained_runs(cls, config: Any, options: CyclesOptions) -> frozenset[int]:
        if options.trained is None:
            return frozenset()
        trained = [1] * (options.high_cycles - len(options.trained)) + options.trained
        low = low_layers(config, options)
        runs: set[int] = set()
        period = len(cls.plan(config, options)) // options.high_cycles
        for cycle, kept in enumerate(trained):
            runs.update(range(cycle * period, cycle * period + low * (options.low_cycles - kept)))
        return frozenset(runs)

    def start(self, state: State) -> State:
        """(z_L + z_H, z_H)."""
        return (state[0] + self.low_start.to(state[0].dtype), state[0])

    def between(self, state: State, run: int) -> State:
        """Behind a module what the next one reads, and the level that it does not write; between layers no change."""
        cycle = self.ends.get(run)
        if cycle is None:
            return state
        if cycle == self.options.low_cycles:  # H's own end, already normed, but for the last run of all
            return (state[0],) if run == max(self.ends) else (state[0] + state[1], state[0])
        low: Tensor = self.low_norm(state[0])
        if run in self.untrained_runs(self.config, self.options):
            low = low.detach()
        return (low + state[1], low if cycle == self.options.low_cycles - 1 else state[1])

    def init_weights(self) -> None:
        init.zeros_(self.low_start)


def low_layers(config: Any, options: CyclesOptions) -> int:
    """How many layers the fast module has."""
    return config.num_hidden_layers // 2 if options.low is None else options.low


def _module_ends(config: Any, options: CyclesOptions) -> list[tuple[int, int]]:
    """(last run of a module, its number in the slow cycle: below `low_cycles` for L, that for H) in order."""
    low, run, found = low_layers(config, options), -1, []
    for _ in range(options.high_cycles):
        for cycle in range(options.low_cycles + 1):
            run += low if cycle < options.low_cycles else config.num_hidden_layers - low
            found.append((run, cycle))
    return found
