"""A model of a given size in the shape of another: width and depth grow together, heads keep their width."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.experiments.planning.match import MatchError, match_model
from hf_arch.recipe.match import MatchOptions

ConfigOf = Callable[[Mapping[str, Any]], Any]
"""From changes of a model's section to its config; raises `ConfigError` where the values do not go together."""
MOST_UNITS = 4096
TOLERANCE = 0.02
ALIKE = 0.01
"""How far the parameters of two runs of one size may be apart, as the audit of a comparison allows."""
CLOSE = 0.1


@dataclass(frozen=True)
class Sized:
    """`changes` of the model's section, and the parameters without embeddings and head that come of them."""

    changes: dict[str, Any]
    parameters: int


def body_parameters(config: Any, sequence_length: int) -> int:
    """Parameters without the embeddings and without the head, tied or not."""
    cost = hf_arch.cost(config, sequence_length)
    head = 0 if config.tie_word_embeddings else config.hidden_size * config.vocab_size
    return cost.params_total - cost.params_embedding - head


def sized_model(
    config_of: ConfigOf, target: float, sequence_length: int, *, depth: bool, ffn: bool, like: Sized | None = None
) -> Sized:
    """The model nearest to `target` parameters without embeddings and head.

    Args:
        config_of: the recipe's own model with changes; without any it is the shape.
        depth: whether the number of layers grows with the width.
        ffn: whether the width of the FFN may then make up for what whole heads and layers leave.
        like: the model that another run has at this size. Its width is taken where the FFN's can make the parameters
            equal within 1 %: with another width the embeddings would differ, which are a good part of a tiny model.

    Raises:
        ConfigError: no width that the model allows comes within a factor of two.
    """
    shape = config_of({})
    unit = shape.hidden_size // shape.num_attention_heads
    problems: list[str] = []

    @cache
    def at(units: int, more_layers: int = 0) -> Sized | None:
        changes = _changes(shape, units * unit, depth)
        if more_layers:
            changes["num_hidden_layers"] += more_layers
        if changes.get("num_hidden_layers", 1) < 1:
            return None
        try:
            return Sized(changes, body_parameters(config_of(changes), sequence_length))
        except ConfigError as error:
            problems.append(str(error))
            return None

    if like is not None and ffn and like.changes["hidden_size"] % unit == 0:
        same = at(like.changes["hidden_size"] // unit)
        if same is not None:
            same = _with_ffn(config_of, same, like.parameters, sequence_length, ALIKE)
            if abs(same.parameters / like.parameters - 1) <= ALIKE:
                return same

    high = 1
    while high < MOST_UNITS and ((found := at(high)) is None or found.parameters < target):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        found = at(middle)
        low, high = (middle, high) if found is not None and found.parameters < target else (low, middle)

    def off(sized: Sized) -> float:
        return abs(sized.parameters / target - 1)

    widths = range(max(1, low - 2), high + 3)
    near = [found for units in widths if (found := at(units)) is not None]
    if not near:
        raise ConfigError(f"experiment.ladder.sizes: no model of {target:,.0f} parameters: {problems[0]}")
    best = min(near, key=off)
    if ffn:
        best = _with_ffn(config_of, best, target, sequence_length)
    if depth and off(best) > CLOSE:  # a layer more or less than the shape has
        near = [found for units in widths for layers in (-1, 1) if (found := at(units, layers)) is not None]
        best = min([best, *near], key=off)
    if not target / 2 <= best.parameters <= 2 * target:
        raise ConfigError(
            f"experiment.ladder.sizes: {target:,.0f} cannot be reached in this shape; "
            f"nearest: {best.parameters:,} (parameters without embeddings)"
        )
    return best


def _changes(shape: Any, width: int, depth: bool) -> dict[str, Any]:
    ratio = width / shape.hidden_size
    heads = max(1, round(shape.num_attention_heads * ratio))
    changes: dict[str, Any] = {"hidden_size": width, "num_attention_heads": heads}
    if depth:
        changes["num_hidden_layers"] = max(1, round(shape.num_hidden_layers * ratio))
    shared = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    if shared != shape.num_attention_heads:
        changes["num_key_value_heads"] = max(1, heads * shared // shape.num_attention_heads)
    if isinstance(inner := getattr(shape, "intermediate_size", None), int):
        changes["intermediate_size"] = max(1, round(inner * ratio))
    return changes


def _with_ffn(
    config_of: ConfigOf, sized: Sized, target: float, sequence_length: int, tolerance: float = TOLERANCE
) -> Sized:
    """The model with the FFN's width that comes closest; as it was where that does not reach the target."""

    def size(changes: Mapping[str, Any]) -> float:
        return float(body_parameters(config_of({**sized.changes, **changes}), sequence_length))

    try:
        options = MatchOptions(tolerance=tolerance, vary="intermediate_size")
        matched = match_model(size, target, options, "", "")
    except (MatchError, ConfigError):
        return sized
    changes = {**sized.changes, **matched.changes}
    return Sized(changes, round(matched.size))
