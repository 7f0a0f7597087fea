"""Mamba-2 checkpoints: transformers' `Mamba2ForCausalLM` and FLA's, which share keys and differ in option names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..models.configuration import ArchConfig
from .base import FOREIGN
from .reader import ConfigReader
from .state_space import BIASES, BLOCKS, STEP_SIZES, WIDTHS, StateSpace
from .table import Layer, Modules, Option, Tensors, Unused, under

# FLA's options that transformers' model does not have: our name and the one value that it knows.
_OF_FLA = {
    "rmsnorm": ("use_norm", True),
    "norm_before_gate": ("norm_before_gate", False),
    "D_has_hdim": ("D_has_hdim", False),
}
_LIMITS = ("time_step_limit", "dt_limit")


def _native(reader: ConfigReader) -> bool:
    return "layer_norm_epsilon" in reader.config or "time_step_rank" in reader.config


def _heads(reader: ConfigReader) -> int:
    return int(reader.given("expand", 2) * reader.need("hidden_size")) // reader.given("head_dim", 64)


def _their_heads(layer: Layer) -> int:
    return int(layer.mixer.expand * layer.config.hidden_size) // (layer.mixer.head_dim or layer.config.hidden_size)


def _of_fla(theirs: str, ours: str, known: bool) -> Option:
    return Option(theirs, ours, known, read=lambda value, reader: known if _native(reader) else value)


def _limits(limits: Sequence[Any], _: ConfigReader) -> tuple[float, float | None]:
    """Bounds of a config, whose infinities transformers writes as {"__float__": "Infinity"}."""
    low, high = (float(bound["__float__"] if isinstance(bound, dict) else bound) for bound in limits)
    return low, None if math.isinf(high) else high


def their_limits(layer: Layer) -> list[float]:
    """The bounds, the other way."""
    low, high = layer.mixer.dt_limit_min, layer.mixer.dt_limit_max
    return [float(low), math.inf if high is None else float(high)]


def step_limits(
    theirs: str | tuple[str, ...] = "time_step_limit", write: Callable[[Layer], list[float]] = their_limits
) -> Option:
    """The bounds of a step, one pair there and two options of ours."""
    return Option(theirs, ("dt_limit_min", "dt_limit_max"), (0.0, math.inf), null=True, read=_limits, write=write)


def without_native_names(theirs: dict[str, Any]) -> dict[str, Any]:
    """A config under FLA's names alone."""
    native = ("layer_norm_epsilon", _LIMITS[0], *(option.names[0] for option in STEP_SIZES))
    return {name: value for name, value in theirs.items() if name not in native}


NUM_HEADS = Option("num_heads", None, _heads, allowed=lambda reader: (_heads(reader),), write=_their_heads)
"""Which the width and `head_dim` decide."""

MIXER: tuple[Option, ...] = (
    Option("head_dim", default=64, null=True, write=lambda layer: layer.mixer.head_dim or layer.config.hidden_size),
    NUM_HEADS,
    Option("state_size", default=128),
    Option("expand", default=2, null=True),
    Option("n_groups", default=lambda reader: 8 if _native(reader) else 1),
    Option("conv_kernel", "conv_size", 4),
    *(_of_fla(theirs, *ours) for theirs, ours in _OF_FLA.items()),
    step_limits(_LIMITS),
    Option("A_init_range", ("A_min", "A_max"), (1, 16), null=True),
    Option("conv_init"),
    Option("rescale_prenorm_residual", "rescale_out_proj", lambda reader: not _native(reader)),
    *BIASES,
    *STEP_SIZES,
)
MIXER_TENSORS = (Tensors("A_log D dt_bias"), Modules("norm", when="use_norm"), *WIDTHS)


@FOREIGN.register("mamba2")
class Mamba2(StateSpace):
    """Mamba-2; a config is read as transformers' where it has transformers' names, and written with both, or with FLA's
    alone where the model has what only FLA's has (transformers ignores it)."""

    architecture, mixer = "mamba2", "mamba2"
    model_options = (
        *BLOCKS,
        Unused("time_step_rank chunk_size rms_norm"),
        Option("tie_word_embeddings", default=False),
    )
    mixer_options = MIXER
    layer_tensors = (
        Modules("mixer_norm", "norm"),
        *under("mixer", "mixer", *MIXER_TENSORS),
    )

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        theirs = super().config_to_theirs(config)
        only_fla = any(theirs[name] != known for name, (_, known) in _OF_FLA.items())
        return without_native_names(theirs) if only_fla else theirs
