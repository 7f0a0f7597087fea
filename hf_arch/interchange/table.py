"""A family of checkpoints as tables: its options and its tensors, each said once and read in both directions.

    Option("use_gate", "use_output_gate", False)       # use_gate of theirs, False where left out, is use_output_gate
    Option("hidden_act", allowed={"swish": "silu"})    # any other value is refused, in both directions
    Unused("fuse_norm criterion")                      # no number depends on these
    Modules("q_conv k_conv", "q_conv1d k_conv1d", when="use_short_conv")

`Converter` (`base.py`) reads and writes a config, and pairs the tensors, from such tables alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..models.configuration import ArchConfig
from .reader import ConfigReader, Kind
from .rules import Rule, parts, same


@dataclass(frozen=True)
class Layer:
    """A layer of one of our models, from which a table takes values and asks whether an entry applies.

    Attributes:
        mixer_class, mixer, ffn_class, ffn: its components and their options. theirs: the foreign config.
    """

    config: ArchConfig
    index: int
    mixer_class: Any
    mixer: Any
    ffn_class: Any
    ffn: Any
    theirs: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def effective(self) -> dict[str, Any]:
        """The mixer's options with the config's where they leave it to that."""
        return self.mixer_class.effective(self.config, self.mixer)

    @property
    def ffn_width(self) -> int | None:
        """None for a feed-forward that has no such width."""
        return self.ffn_class.width(self.config, self.ffn) if hasattr(self.ffn_class, "width") else None

    @property
    def activation(self) -> str:
        """The feed-forward's, its own or the config's."""
        return getattr(self.ffn, "hidden_act", None) or self.config.hidden_act

    @property
    def rope_theta(self) -> float:
        """The base of the rotary frequencies, the mixer's own or the config's."""
        own = getattr(self.mixer, "rope_theta", None)
        return own or (self.config.rope_parameters or {}).get("rope_theta", 10000.0)


def as_bool(value: Any, _: ConfigReader) -> bool:
    """What is true there."""
    return bool(value)


def as_float(value: Any, _: ConfigReader) -> float:
    """A number that may be written as a whole one."""
    return float(value)


@dataclass(frozen=True)
class Option:
    """One option of theirs and what it is here.

    Attributes:
        theirs: its name; of several, the first that a config has counts, and all are written.
        ours: our name, theirs where empty; several names take a sequence apart; None: no value here depends on it.
        default: the source's value where a config leaves it out, or a function of the reader.
        required: there is no default. null: null means the default. absent: left out, it is ours that counts.
        allowed: the values with an equivalent here, or those and what they are here (of two names of one value the
            first is written), or a function of the reader that returns the values.
        kind: what a value may be, where the table of `reader.py` does not have the name.
        older: names of theirs that are read only.
        read: (value, reader) -> our value. write: layer -> the value that is written, instead of `ours` as it is.
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...] | None = ""
    default: Any = None
    required: bool = False
    null: bool = False
    absent: bool = False
    allowed: Collection[Any] | Callable[[ConfigReader], Collection[Any]] | None = None
    kind: Kind | None = None
    older: tuple[str, ...] = ()
    read: Callable[[Any, ConfigReader], Any] | None = None
    write: Callable[[Layer], Any] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    def to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        """Our names and values; a ConfigError for a value that has no equivalent here."""
        if self.absent and self.names[0] not in reader.config:
            return {}
        value = self._value(reader)
        if isinstance(self.allowed, Mapping):
            value = self.allowed[value]
        if self.read is not None:
            value = self.read(value, reader)
        if isinstance(self.ours, tuple):
            return dict(zip(self.ours, value, strict=True))
        return {} if self.ours is None else {self.ours or self.names[0]: value}

    def _value(self, reader: ConfigReader) -> Any:
        names = (*self.names, *self.older)
        for name in names:
            reader.take(name, kind=self.kind)
        given = (name for name in names if name in reader.config and not (self.null and reader.config[name] is None))
        name = next(given, names[0])
        default = self.default(reader) if callable(self.default) else self.default
        if self.required:
            return reader.need(name)
        if self.allowed is not None:
            return reader.only(name, self.allowed(reader) if callable(self.allowed) else self.allowed, default)
        return reader.given(name, default) if self.null else reader.take(name, default, self.kind)

    def to_theirs(self, layer: Layer, source: Any) -> dict[str, Any]:
        """Their names and values, from `layer` or the attributes of `source`; nothing where that has no such option,
        and the default where its value has no equivalent there: `to_foreign` compares, and refuses both."""
        ours = self.names[0] if self.ours == "" else self.ours
        if self.write is not None:
            value = self.write(layer)
        elif isinstance(ours, tuple):
            value = [getattr(source, name) for name in ours]
        elif ours is None or not hasattr(source, ours):
            return {}
        else:
            value = getattr(source, ours)
        if self.allowed is not None and not callable(self.allowed):
            pairs = (
                self.allowed.items() if isinstance(self.allowed, Mapping) else ((each, each) for each in self.allowed)
            )
            value = next((theirs for theirs, mine in pairs if mine == value), self.default)
        return dict.fromkeys(self.names, value)


@dataclass(frozen=True)
class Unused:
    """Options of theirs on which no number depends there either, separated by spaces."""

    names: str

    def to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        reader.dead(*self.names.split())
        return {}

    def to_theirs(self, layer: Layer, source: Any) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Always:
    """An option of ours that has one value there, and no name."""

    ours: str
    value: Any

    def to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        return {self.ours: self.value}

    def to_theirs(self, layer: Layer, source: Any) -> dict[str, Any]:
        return {}


Entry = Option | Unused | Always


def only(theirs: str, value: Any, *others: Any, written: bool = False) -> Option:
    """An option of theirs of which there is one value here; `others` mean the same."""
    return Option(theirs, None, value, allowed=(value, *others), write=(lambda _: value) if written else None)


Condition = bool | str | Callable[[Layer], Any]
"""Whether an entry applies to a layer: an option of its mixer, or a function."""


def holds(condition: Condition, layer: Layer) -> bool:
    """Whether it applies."""
    if isinstance(condition, str):
        return bool(getattr(layer.mixer, condition))
    return bool(condition(layer) if callable(condition) else condition)


@dataclass(frozen=True)
class Tensors:
    """Tensors under two names, separated by spaces; theirs are ours where empty.

    Attributes:
        layout: (layer, our keys, their keys) -> the rule by which all these tensors change their layout together.
    """

    ours: str
    theirs: str = ""
    when: Condition = True
    layout: Callable[[Layer, tuple[str, ...], tuple[str, ...]], Rule] | None = None

    def pair(self, layer: Layer, ours: str, theirs: str) -> list[Rule]:
        return [same(ours, theirs)]

    def rules(self, layer: Layer) -> list[Rule]:
        """The rules for one layer."""
        if not holds(self.when, layer):
            return []
        ours, theirs = tuple(self.ours.split()), tuple((self.theirs or self.ours).split())
        if self.layout is not None:
            return [self.layout(layer, ours, theirs)]
        return [rule for pair in zip(ours, theirs, strict=True) for rule in self.pair(layer, *pair)]


@dataclass(frozen=True)
class Modules(Tensors):
    """`Tensors` for modules with a weight, and a bias where there is one."""

    bias: Condition = False

    def pair(self, layer: Layer, ours: str, theirs: str) -> list[Rule]:
        return parts(ours, theirs, ("weight", "bias") if holds(self.bias, layer) else ("weight",))


def under(ours: str, theirs: str, *tables: Tensors) -> tuple[Tensors, ...]:
    """The same tensors of a module that is called `ours` and `theirs`."""

    def prefixed(prefix: str, names: str) -> str:
        return " ".join(f"{prefix}.{name}" for name in names.split())

    return tuple(
        replace(table, ours=prefixed(ours, table.ours), theirs=prefixed(theirs, table.theirs or table.ours))
        for table in tables
    )


def when(condition: Callable[[Layer], Any], tables: Iterable[Tensors]) -> tuple[Tensors, ...]:
    """The same tensors, of layers alone for which `condition` holds as well."""

    def both(own: Condition) -> Condition:
        return lambda layer: condition(layer) and holds(own, layer)

    return tuple(replace(table, when=both(table.when)) for table in tables)
