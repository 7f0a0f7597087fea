"""What `rope_parameters` may say, checked when a config is made: every type of transformers, its keys and their values.

transformers warns of values that give another rotation than asked for, or none, and goes on; here they are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

from ..core.errors import ConfigError, choice_error, unknown_key_error

_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
# Of each type: the keys that it needs, and the others that it takes.
ROPE_TYPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (("short_factor", "long_factor", "original_max_position_embeddings"), ("attention_factor", "factor")),
    "llama3": (("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"), ()),
    "proportional": ((), ("factor",)),
    "inclusive": ((), ()),  # ours alone: YOCO's frequencies, see `ArchRotaryEmbedding`
}


@dataclass(frozen=True)
class RotarySpec:
    """Which rotary embedding a mixer wants; mixers with equal specs share one. It is also the view of a config that
    transformers' RoPE functions read (`head_dim`, `rope_parameters`, ...)."""

    head_dim: int
    rope_parameters: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    max_position_embeddings: int = 2048

    @property
    def hidden_size(self) -> int:
        return self.head_dim

    @property
    def num_attention_heads(self) -> int:
        return 1

    @property
    def key(self) -> str:
        whole = {name: float(value) for name, value in self.rope_parameters.items() if type(value) is int}
        given = {**self.rope_parameters, **whole}  # 10000 turns as 10000.0 does
        return repr((self.head_dim, sorted(given.items(), key=str), self.max_position_embeddings))

    def standardize_rope_params(self) -> None:
        """The parameters are standard already (ArchConfig saw to it)."""


def check_rope_parameters(spec: RotarySpec) -> None:
    """Raise a ConfigError for parameters that give no rotation of `spec.head_dim` features."""
    given = spec.rope_parameters
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise choice_error("rope_parameters: rope_type", kind, ROPE_TYPES)
    needed, others = ROPE_TYPES[kind]
    for key in given:
        if key not in (*_COMMON, *needed, *others):
            raise unknown_key_error(f"rope_parameters of type {kind}", key, (*_COMMON, *needed, *others))
    for key in needed:
        if given.get(key) is None:
            raise ConfigError(f"rope_parameters: {key} is missing; type {kind} needs {', '.join(needed)}")
    _number(given, "rope_theta", above=0)
    _number(given, "factor", least=1)
    _number(given, "original_max_position_embeddings", least=1)
    _number(given, "attention_factor", least=0)
    for key in ("beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor"):
        _number(given, key, above=0)
    for key in ("mscale", "mscale_all_dim"):
        _number(given, key, least=0)
    for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
        bottom, top = (given.get(low) or 1), (given.get(high) or 32)
        if bottom >= top and (low in given or high in given):
            raise ConfigError(f"rope_parameters: {high} {top} is not allowed; use a number above {low} {bottom}")
    _check_share(spec, kind, given.get("partial_rotary_factor"))
    for key in ("short_factor", "long_factor"):
        if key in needed:
            _check_factors(key, given[key], rotated_features(spec) // 2)


def rotated_features(spec: RotarySpec) -> int:
    """How many of the features of a head are rotated."""
    share = spec.rope_parameters.get("partial_rotary_factor")
    return int(spec.head_dim * (1.0 if share is None else share))


def _check_share(spec: RotarySpec, kind: str, share: Any) -> None:
    """`partial_rotary_factor` is in (0, 1] and makes an even number of features."""
    if share is None:
        return
    name = "rope_parameters: partial_rotary_factor"
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        near = 1.0 if isinstance(share, int | float) and share > 1 else 2 / spec.head_dim
        raise ConfigError(f"{name}: {share!r} is not allowed; use a number in (0, 1]; nearest valid: {near:g}")
    rotated = rotated_features(spec)
    if kind == "proportional":  # counts pairs of the whole head, and leaves the rest of them unturned
        rotated -= rotated % 2
    if rotated < 2 or rotated % 2:
        even = max(2, rotated - rotated % 2)
        raise ConfigError(
            f"{name}: {share!r} of head_dim {spec.head_dim} is {rotated} features, RoPE rotates pairs; "
            f"nearest valid: {even / spec.head_dim:g}"
        )


def _check_factors(key: str, values: Any, length: int) -> None:
    """A divisor for each frequency."""
    good = isinstance(values, list | tuple) and all(
        isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < inf for x in values
    )
    if not good:
        raise ConfigError(f"rope_parameters: {key} {values!r} is not allowed; use a list of positive numbers")
    if len(values) != length:
        raise ConfigError(
            f"rope_parameters: {key} has {len(values)} numbers, but one for each pair of rotated features is {length}"
        )


def _number(given: dict[str, Any], key: str, *, least: float = -inf, above: float = -inf) -> None:
    value = given.get(key)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ConfigError(f"rope_parameters: {key} {value!r} is not a number")
    if value < least or value <= above:
        bound = f"of at least {least:g}" if least > -inf else f"above {above:g}"
        raise ConfigError(f"rope_parameters: {key} {value!r} is not allowed; use a number {bound}")
