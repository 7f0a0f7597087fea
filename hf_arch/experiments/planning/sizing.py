"""A model of a given size in the shape of another: width and depth grow together, heads keep their width."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

    def off(self, target: float) -> float:
        """How far the parameters are from `target`, as a share of it."""
        return abs(self.parameters / target - 1)


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
    sizes = _Sizes(config_of, sequence_length, depth)
    if like is not None and ffn:
        same = sizes.of_width(like.changes["hidden_size"])
        if same is not None:
            same = _with_ffn(config_of, same, like.parameters, sequence_length, ALIKE)
            if same.off(like.parameters) <= ALIKE:
                return same

    crossing = sizes.first_above(target)
    widths = range(max(1, crossing - 3), crossing + 3)
    near = [found for units in widths if (found := sizes.at(units)) is not None]
    if not near:
        raise ConfigError(f"experiment.ladder.sizes: no model of {target:,.0f} parameters: {sizes.problems[0]}")
    best = min(near, key=lambda sized: sized.off(target))
    if ffn:
        best = _with_ffn(config_of, best, target, sequence_length)
    if depth and best.off(target) > CLOSE:  # a layer more or less than the shape has
        near = [found for units in widths for layers in (-1, 1) if (found := sizes.at(units, layers)) is not None]
        best = min([best, *near], key=lambda sized: sized.off(target))
    if not target / 2 <= best.parameters <= 2 * target:
        raise ConfigError(
            f"experiment.ladder.sizes: {target:,.0f} cannot be reached in this shape; "
            f"nearest: {best.parameters:,} (parameters without embeddings)"
        )
    return best


class _Sizes:
    """The models of one shape by width, counted in units of one head; each is built once."""

    def __init__(self, config_of: ConfigOf, sequence_length: int, depth: bool):
        self.config_of, self.sequence_length, self.depth = config_of, sequence_length, depth
        self.shape = config_of({})
        self.unit = self.shape.hidden_size // self.shape.num_attention_heads
        self.problems: list[str] = []
        self.known: dict[tuple[int, int], Sized | None] = {}

    def at(self, units: int, more_layers: int = 0) -> Sized | None:
        """The model of this width; None where the values do not go together."""
        if (units, more_layers) not in self.known:
            self.known[units, more_layers] = self._count(units, more_layers)
        return self.known[units, more_layers]

    def of_width(self, width: int) -> Sized | None:
        """The model of this width; None too where it is not a whole number of heads."""
        return None if width % self.unit else self.at(width // self.unit)

    def first_above(self, target: float) -> int:
        """The fewest units that have `target` parameters, among those that a doubling and halving search meets."""
        high = 1
        while high < MOST_UNITS and ((found := self.at(high)) is None or found.parameters < target):
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            found = self.at(middle)
            low, high = (middle, high) if found is not None and found.parameters < target else (low, middle)
        return high

    def _count(self, units: int, more_layers: int) -> Sized | None:
        changes = _changes(self.shape, units * self.unit, self.depth)
        if more_layers:
            changes["num_hidden_layers"] += more_layers
        if changes.get("num_hidden_layers", 1) < 1:
            return None
        try:
            return Sized(changes, body_parameters(self.config_of(changes), self.sequence_length))
        except ConfigError as error:
            self.problems.append(str(error))
            return None


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
