"""Looped depth: a stretch of layers run several times with the same weights.

`loop` runs layers start..end - 1 `times` times where they stand (Universal Transformer, Dehghani et al. 2018; Huginn,
Geiping et al. 2025, arXiv 2502.05171; Ouro, arXiv 2510.25741, loops the whole stack). `shared` runs each group of
`group` neighbouring layers `times` times at once: MobileLLM (arXiv 2402.14905) repeats each layer, ALBERT and Ouro the
whole stack. `num_hidden_layers` counts layers with weights of their own.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import DEPTHS, NORMS
from ..streams.base import State, check_whole
from .base import Depth, check_one_tensor


@options
class LoopOptions(Options):
    """`start`, `end`: the first layer and the one behind the last, None = the last of all. `times`: passes.
    `norm`: "each" norms the stream after every pass but the last run by one norm of its own; "final" by the model's
    final norm, as Ouro does before its exits (`losses: exits`)."""

    start: int = 0
    end: int | None = None
    times: int = 2
    norm: Literal["none", "each", "final"] = "none"


@DEPTHS.register("loop")
class LoopDepth(Depth):
    """Some neighbouring layers in several passes."""

    Options = LoopOptions
    label = "Loop"

    def __init__(self, config: Any, options: LoopOptions):
        super().__init__(config, options)
        self.ends = pass_ends(config, options)
        self.norm: nn.Module | None = None
        if options.norm == "each":
            self.norm = NORMS.get(config.norm, "norm")(config.hidden_size, config.norm_eps)

    @classmethod
    def validate(cls, config: Any, options: LoopOptions) -> None:
        check_whole("depth loop times", options.times, 2)
        start, end = bounds(config, options)
        count = config.num_hidden_layers
        if options.norm == "final":
            check_one_tensor("depth loop norm 'final'", config)
            if not config.has_final_norm:
                raise ConfigError(
                    "depth loop norm: 'final' is not allowed, since the model has no final norm; use 'each'"
                )
        if not 0 <= start < end <= count:
            raise ConfigError(
                f"depth loop: start {options.start} and end {options.end} are not allowed; "
                f"use 0 <= start < end <= {count}"
            )

    @classmethod
    def plan(cls, config: Any, options: LoopOptions) -> list[int]:
        start, end = bounds(config, options)
        layers = list(range(config.num_hidden_layers))
        return layers[:start] + layers[start:end] * options.times + layers[end:]

    @classmethod
    def normed_runs(cls, config: Any, options: LoopOptions) -> frozenset[int]:
        return frozenset(pass_ends(config, options) if options.norm == "final" else ())

    @classmethod
    def exits(cls, config: Any, options: LoopOptions) -> tuple[int, ...]:
        """The ends of passes, where no layer comes behind the loop."""
        whole = bounds(config, options)[1] == config.num_hidden_layers
        return tuple(sorted(pass_ends(config, options))) if whole else ()

    def between(self, state: State, run: int) -> State:
        if self.norm is None or run not in self.ends:
            return state
        first: Tensor = self.norm(state[0])
        return (first, *state[1:])


def bounds(config: Any, options: LoopOptions) -> tuple[int, int]:
    """(first layer, the one behind the last) of the loop."""
    return options.start, config.num_hidden_layers if options.end is None else options.end


def pass_ends(config: Any, options: LoopOptions) -> set[int]:
    """The last run of each pass, but for the last run of all."""
    start, end = bounds(config, options)
    ends = {start + (end - start) * passed - 1 for passed in range(1, options.times + 1)}
    return ends - {len(LoopDepth.plan(config, options)) - 1}


@options
class SharedOptions(Options):
    """`group`: neighbouring layers that are repeated together, None = all. `times`: runs of each."""

    group: int | None = None
    times: int = 2


@DEPTHS.register("shared")
class SharedDepth(Depth):
    """Groups of layers that share their weights with the groups after them."""

    Options = SharedOptions
    label = "Shared"

    @classmethod
    def validate(cls, config: Any, options: SharedOptions) -> None:
        check_whole("depth shared times", options.times, 2)
        if options.group is not None:
            check_whole("depth shared group", options.group)
            if config.num_hidden_layers % options.group:
                divisors = [n for n in range(1, config.num_hidden_layers + 1) if config.num_hidden_layers % n == 0]
                near = min(divisors, key=lambda n: abs(n - (options.group or 0)))
                raise ConfigError(
                    f"depth shared group: {options.group} does not divide num_hidden_layers "
                    f"{config.num_hidden_layers}; nearest valid: {near}"
                )

    @classmethod
    def plan(cls, config: Any, options: SharedOptions) -> list[int]:
        size = options.group or config.num_hidden_layers
        layers = list(range(config.num_hidden_layers))
        return [
            layer for start in range(0, len(layers), size) for layer in layers[start : start + size] * options.times
        ]
