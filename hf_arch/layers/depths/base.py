"""The depth contract: the order in which a model's layers run, and how often each.

`plan` gives the indices of the layers in the order of their runs, `[0, 1, 2, 1, 2, 3]` for a loop over layers 1 and 2.
Weights are those of the layer, whatever the run; each run has a cache entry of its own. `between`, after each run, may
change what flows on.
"""

from __future__ import annotations

from typing import Any

from ...core.errors import ConfigError
from ...core.registry import DEPTHS
from ..contract import CalledByMethod, ConfiguredPart
from ..streams.base import State, Stream


class Depth(CalledByMethod, ConfiguredPart):
    """Base of every order of runs; built as `DepthClass(config, options)`."""

    @classmethod
    def plan(cls, config: Any, options: Any) -> list[int]:
        """The layers in the order of their runs; every layer at least once."""
        return list(range(config.num_hidden_layers))

    @classmethod
    def normed_runs(cls, config: Any, options: Any) -> frozenset[int]:
        """Runs of the plan, the last one aside, behind which the stream goes through the model's final norm, before
        `between`."""
        return frozenset()

    @classmethod
    def untrained_runs(cls, config: Any, options: Any) -> frozenset[int]:
        """Runs of the plan that are computed without gradients."""
        return frozenset()

    @classmethod
    def exits(cls, config: Any, options: Any) -> tuple[int, ...]:
        """Runs of the plan, the last one aside, behind which the head can predict: `losses: exits` trains it there."""
        return ()

    def start(self, state: State) -> State:
        """The stream's state before the first run, with whatever else has to flow behind it."""
        return state

    def between(self, state: State, run: int) -> State:
        """The state after run number `run` of the plan."""
        return state


@DEPTHS.register("plain")
class PlainDepth(Depth):
    """Every layer once, as in every transformer."""


def check_one_tensor(field: str, config: Any) -> None:
    """Raise a ConfigError where the stream is more than one tensor that is the hidden states themselves."""
    stream, _ = config.stream_spec
    if stream.start is not Stream.start or stream.finish is not Stream.finish:
        raise ConfigError(
            f"{field}: stream {config.stream['type']!r} is not supported, since it makes hidden states of its state; "
            "use stream 'add'"
        )


def check_plan(config: Any) -> None:
    """Raises a ConfigError where the plan leaves out a layer, or runs one again that a part of the model cannot."""
    depth, given = config.depth_spec
    depth.validate(config, given)
    plan = depth.plan(config, given)
    layers = set(range(config.num_hidden_layers))
    if set(plan) != layers:
        wrong = sorted(layers - set(plan)) or sorted(set(plan) - layers)
        raise ConfigError(
            f"depth: the plan of {depth.__name__} must run each of the {len(layers)} layers; see layer {wrong[0]}"
        )
    stream, stream_options = config.stream_spec
    if len(plan) > len(layers) and not stream.repeats(stream_options):
        raise ConfigError(f"depth: stream {stream.label or 'add'} counts layers, so none can run twice; use stream add")
