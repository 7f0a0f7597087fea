"""Several mixers side by side in one layer, whose outputs are added (Falcon-H1, Zuo et al. 2025, arXiv 2507.22448;
Hymba, Dong et al. 2024, arXiv 2411.13676).

    y_t = sum_i b_i N_i( mixer_i(a_i x)_t )

with factors a_i of the inputs and b_i of the outputs, all 1 by default, and N_i a norm of each output or nothing.
Falcon-H1 is `[attention, mamba2]` with factors; Hymba norms the outputs and takes their mean (`output_scales: [0.5,
0.5]`, the weights of the norms being its learned ones).

One branch may keep keys and values, and any number of them states: each has a place of its own in the layer's cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError, describe_choices
from ...core.options import Options, compact, options, parse_options
from ...core.registry import MIXERS, NORMS, POSITIONS
from ..contract import EMPTY_CONTEXT, LayerContext, LayerOutput
from ..rope_parameters import RotarySpec
from ..state import MIXER_STATES, RECURRENT
from .base import CacheKind, Mixer, MixerCost, SharedSpec

T = TypeVar("T")
_WITH_KEYS = {
    "full_attention": "full_attention",
    "hybrid": "full_attention",
    "sliding_attention": "sliding_attention",
    "hybrid_sliding": "sliding_attention",
}
"""Layer types with keys, and what they are without states."""
_WITH_STATES = {"full_attention": "hybrid", "sliding_attention": "hybrid_sliding"}


@options
class ParallelOptions(Options):
    """`branches`: two mixers or more, each a name or a dict with its options; None = attention and mamba2.
    `input_scales`, `output_scales`: a factor for each, None = 1. `branch_norm`: a norm of each output, of the config's
    kind."""

    branches: list[Any] | None = None
    input_scales: list[float | int] | None = None
    output_scales: list[float | int] | None = None
    branch_norm: bool = False

    def __post_init__(self) -> None:
        branches = ["attention", "mamba2"] if self.branches is None else self.branches
        self.branches = [_with_every_option(branch) for branch in branches]


def _with_every_option(branch: Any) -> dict[str, Any]:
    """A branch as a dict with its `type` and every option that is set."""
    given = {"type": branch} if isinstance(branch, str) else branch
    if not isinstance(given, dict) or "type" not in given:
        raise ConfigError(
            f"branches: {branch!r} is neither a name nor a dict with a `type`; "
            f"{describe_choices('', MIXERS, MIXERS.listing)}"
        )
    return {"type": given["type"], **compact(_parsed(given)[1])}


def _parsed(branch: dict[str, Any]) -> tuple[Any, Any]:
    """(mixer class, its options)."""
    mixer = MIXERS.get(branch["type"], "branches")
    given = {name: value for name, value in branch.items() if name != "type"}
    return mixer, parse_options(mixer.Options, given, f"branches {branch['type']}")


@MIXERS.register("parallel")
class ParallelMixers(Mixer):
    """The sum of several mixers of one input."""

    Options = ParallelOptions
    cache_kind: ClassVar[CacheKind] = "both"
    label: ClassVar[str] = "Parallel"

    def __init__(self, config: Any, options: ParallelOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        members = self.members(options)
        self.branches = nn.ModuleList([mixer(config, given, layer_idx) for mixer, given in members])
        self.norms = (
            nn.ModuleList([NORMS.get(config.norm, "norm")(config.hidden_size, config.norm_eps) for _ in members])
            if options.branch_norm
            else None
        )
        self.input_scales = options.input_scales or [1.0] * len(members)
        self.output_scales = options.output_scales or [1.0] * len(members)
        self.rotates = [mixer.rotary(config, given) is not None for mixer, given in members]
        self.takes_shared = [mixer.shared(config, given) is not None for mixer, given in members]
        self.asks_keys = [mixer.needs_key_positions(config, given) for mixer, given in members]
        self.first_states = self._first_states(config, options)

    @classmethod
    def members(cls, options: ParallelOptions) -> list[tuple[Any, Any]]:
        return [_parsed(branch) for branch in options.branches or []]

    @classmethod
    def validate(cls, config: Any, options: ParallelOptions) -> None:
        members = cls.members(options)
        if len(members) < 2:
            raise ConfigError(f"branches: {len(members)} of them is not allowed; use at least two mixers")
        for name in ("input_scales", "output_scales"):
            scales = getattr(options, name)
            if scales is not None and (
                len(scales) != len(members) or not all(abs(x) > 0 and isfinite(x) for x in scales)
            ):
                raise ConfigError(
                    f"{name}: {scales} is not allowed; use a number other than 0 for each of {len(members)} branches"
                )
        for mixer, given in members:
            cls._check_branch(mixer, options)
            mixer.validate(config, given)
            if _takes_bias(config, mixer, given):
                raise ConfigError(f"position: {config.position!r} is not supported in branches; use 'rope' or 'none'")
        layers = [index for index, spec in enumerate(config.mixer_specs) if spec == (cls, options)]
        for mixer, given in members:
            for index in layers:
                names = (*mixer.publishes(config, given, index), *mixer.needs(config, given, index))
                if names:
                    raise ConfigError(
                        f"branches: {mixer.__name__} hands {names[0]!r} from layer to layer, which a branch cannot; "
                        "use another mixer, or other options of it"
                    )
        cls._check_single(config, members)

    @classmethod
    def _check_branch(cls, mixer: Any, options: ParallelOptions) -> None:
        if issubclass(mixer, cls):
            raise ConfigError("branches: 'parallel' is not allowed as a branch; list its mixers instead")
        if not mixer.writes:
            raise ConfigError(f"branches: {mixer.__name__} writes nothing, so a branch of it would have no effect")

    @classmethod
    def _check_single(cls, config: Any, members: list[tuple[Any, Any]]) -> None:
        """There is one cache of keys, one rotation and one set of shared parameters a layer."""
        keys = [mixer.__name__ for mixer, given in members if mixer.layer_type(config, given) in _WITH_KEYS]
        if len(keys) > 1:
            raise ConfigError(
                f"branches: {' and '.join(keys)} each keep keys and values, and a layer has one cache of these; use "
                "one of them, with recurrent mixers"
            )
        rotations = {spec.key for mixer, given in members if (spec := mixer.rotary(config, given)) is not None}
        if len(rotations) > 1:
            raise ConfigError(
                "branches: they have different rotations, and a layer has one; make rope_theta and sizes equal"
            )
        shared = {spec for mixer, given in members if (spec := mixer.shared(config, given)) is not None}
        if len(shared) > 1:
            raise ConfigError("branches: two of them share parameters with other layers, and a layer has one such set")

    @classmethod
    def layer_type(cls, config: Any, options: ParallelOptions) -> str:
        kinds = [mixer.layer_type(config, given) for mixer, given in cls.members(options)]
        keys = next((_WITH_KEYS[kind] for kind in kinds if kind in _WITH_KEYS), None)
        if keys is None:
            return RECURRENT
        return _WITH_STATES[keys] if any(map(_keeps_states, kinds)) else keys

    @classmethod
    def window(cls, config: Any, options: ParallelOptions) -> int | None:
        keyed = [spec for spec in cls.members(options) if spec[0].layer_type(config, spec[1]) in _WITH_KEYS]
        return keyed[0][0].window(config, keyed[0][1]) if keyed else None

    def takes_bands(self) -> bool:
        """Whether the branch with keys does: no other reads the mask."""
        branches: Any = self.branches
        keyed = [branch for branch in branches if branch.layer_type(self.config, branch.options) in _WITH_KEYS]
        return bool(keyed) and all(branch.takes_bands() for branch in keyed)

    @classmethod
    def tensor_parallel(cls, config: Any, options: ParallelOptions) -> dict[str, str]:
        """transformers names the branches by `*` only: one is split where no other has other modules of these names."""
        members = cls.members(options)
        plans = [mixer.tensor_parallel(config, given) for mixer, given in members]
        if not any(plans):
            return {}
        with torch.device("meta"):
            built = [mixer(config, given, 0) for mixer, given in members]
        names = [{*dict(branch.named_modules()), *dict(branch.named_parameters())} for branch in built]
        split: dict[str, str] = {}
        for plan in plans:
            others = list(zip(plans, names, strict=True))
            if all(plan[name] == other.get(name) for name in plan for other, has in others if name in has):
                split |= {f"branches.*.{name}": style for name, style in plan.items()}
        return split

    @classmethod
    def rotary(cls, config: Any, options: ParallelOptions) -> RotarySpec | None:
        return _first(mixer.rotary(config, given) for mixer, given in cls.members(options))

    @classmethod
    def needs_key_positions(cls, config: Any, options: ParallelOptions) -> bool:
        return any(mixer.needs_key_positions(config, given) for mixer, given in cls.members(options))

    @classmethod
    def shared(cls, config: Any, options: ParallelOptions) -> SharedSpec | None:
        return _first(mixer.shared(config, given) for mixer, given in cls.members(options))

    @classmethod
    def further_states(cls, config: Any, options: ParallelOptions) -> int:
        kinds = [mixer.layer_type(config, given) for mixer, given in cls.members(options)]
        return MIXER_STATES * max(0, sum(map(_keeps_states, kinds)) - 1)

    @classmethod
    def _first_states(cls, config: Any, options: ParallelOptions) -> list[int]:
        """Where the states of each branch begin in the layer's cache: those of the first where a single mixer's do, the
        others behind those of the feed-forward and the sites."""
        firsts, count = [], 0
        for mixer, given in cls.members(options):
            firsts.append(0 if count == 0 else config.first_further_state + MIXER_STATES * (count - 1))
            count += _keeps_states(mixer.layer_type(config, given))
        return firsts

    @classmethod
    def effective(cls, config: Any, options: ParallelOptions) -> dict[str, Any]:
        members, ones = cls.members(options), [1.0] * len(options.branches or [])
        return {
            **super().effective(config, options),
            "branches": [mixer.effective(config, given) for mixer, given in members],
            "input_scales": options.input_scales or ones,
            "output_scales": options.output_scales or ones,
        }

    def forward(self, hidden_states: Tensor, context: LayerContext = EMPTY_CONTEXT) -> Tensor:
        total: Tensor | None = None
        for index, branch in enumerate(self.branches):
            before, after = self.input_scales[index], self.output_scales[index]
            own = context.changed(
                position_embeddings=context.position_embeddings if self.rotates[index] else None,
                shared=context.shared if self.takes_shared[index] else None,
                keys=context.keys if self.asks_keys[index] else None,
                first_state=self.first_states[index],
            )
            x = hidden_states if before == 1 else hidden_states * before
            out = LayerOutput.of(branch(x, context=own)).hidden_states
            out = out if self.norms is None else self.norms[index](out)
            out = out if after == 1 else out * after
            total = out if total is None else total + out
        assert total is not None
        return total

    def cost(self, seq_len: int) -> MixerCost:
        """That of the branches together."""
        branches: Any = self.branches
        return sum((branch.cost(seq_len) for branch in branches), MixerCost())


def _first(specs: Iterable[T | None]) -> T | None:
    """The first that is not None: branches that have one agree (`_check_single`)."""
    return next((spec for spec in specs if spec is not None), None)


def _keeps_states(kind: str) -> bool:
    return kind in (RECURRENT, "hybrid", "hybrid_sliding")


def _takes_bias(config: Any, mixer: Any, given: Any) -> bool:
    """Whether a mixer would add the config's position bias to its scores."""
    takes = "position" in mixer.config_features and getattr(given, "position", None) is None
    return POSITIONS.get(config.position, "position").bias and takes
