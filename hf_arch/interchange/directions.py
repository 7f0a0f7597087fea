"""The tables of a family (`table.py`) read in either direction: options to ours and to theirs, tensors to rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..core.errors import ConfigError
from ..core.registry import Registry
from ..models.configuration import ArchConfig
from .reader import ConfigReader
from .rules import Rule
from .table import Entry, Layer, Tensors


def layers_of(config: ArchConfig, theirs: Mapping[str, Any] | None = None) -> list[Layer]:
    """Every layer of a model of ours."""
    pairs = zip(config.mixer_specs, config.ffn_specs, strict=True)
    return [Layer(config, index, *mixer, *ffn, theirs or {}) for index, (mixer, ffn) in enumerate(pairs)]


def need_layer(config: ArchConfig, registry: Registry[Any], name: str, checkpoint: str) -> Layer:
    """The first layer with the mixer or feed-forward `name`, which `checkpoint` needs.

    Raises:
        ConfigError: there is none.
    """
    layers = layers_of(config)
    found = next((each for each in layers if registry.get(name) in (each.mixer_class, each.ffn_class)), None)
    if found is None:
        raise ConfigError(f"{registry.kind}: no layer is {name!r}; a {checkpoint} checkpoint needs at least one")
    return found


def options_to_ours(table: Iterable[Entry], reader: ConfigReader) -> dict[str, Any]:
    """What a foreign config says in our terms."""
    return {name: value for entry in table for name, value in entry.to_ours(reader).items()}


def options_to_theirs(table: Iterable[Entry], layer: Layer, source: Any) -> dict[str, Any]:
    """The same, the other way: `source` is the object whose attributes `ours` names."""
    return {name: value for entry in table for name, value in entry.to_theirs(layer, source).items()}


def tensor_rules(table: Iterable[Tensors], layer: Layer) -> list[Rule]:
    """The rules of a table for one layer."""
    return [rule for entry in table for rule in entry.rules(layer)]
