"""The measured numbers of a run: one definition each, which the record, every table, the card and the page read.

A number is a field of `hf_arch.runs.record.RunRecord` declared by `measured(...)`: its name is its key in
`results.json`, and this definition says what it is, its unit, how it is written, and who shows it. To add one, add the
field there and fill it in the run; `Reader` lists where it can then appear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import Flag, auto
from typing import Any

from hf_arch.core.errors import ConfigError


class Reader(Flag):
    """Where a number is shown; `RESULTS` alone keeps it in results.json."""

    RESULTS = auto()
    ROWS = auto()
    """A column of data frames, CSV, `compare --json` and all_benchmark_results.json."""
    TABLE = auto()
    """A column of the table on the terminal, on the page and in the card, headed by `column`."""
    SUMMARY = auto()
    """A line after training."""
    CARD = auto()
    """A line of the model card."""
    SIZES = auto()
    """A line among the sizes of an architecture on the page."""


@dataclass(frozen=True)
class Number:
    """What one number is.

    words: its name in sentences. unit: of the value; said next to the name, or after the value by `with_unit`.
    show: how the value is written. column, help: the head of its column, and what stands behind it.
    decimals: set for numbers reported as mean ± half-width of the 95 % t interval; the least decimals.
    higher_is_better: the direction in which runs are ranked by it.
    """

    key: str
    words: str
    unit: str
    show: Callable[[float | None], str]
    readers: Reader
    column: str
    help: str
    decimals: int | None
    higher_is_better: bool

    @property
    def label(self) -> str:
        """The name with the unit: `validation loss (nats a token)`."""
        return f"{self.words} ({self.unit})" if self.unit else self.words

    def __str__(self) -> str:
        return self.key


def measured(
    words: str,
    show: Callable[[float | None], str] | str,
    readers: Reader = Reader.RESULTS,
    *,
    unit: str = "",
    column: str = "",
    help: str = "",
    decimals: int | None = None,
    higher_is_better: bool = False,
) -> Any:
    """A dataclass field of type `float | None` that holds a measured number; `show` may be a format such as `.4f`."""
    shape = _shaped(show) if isinstance(show, str) else show
    facts = {"words": words, "unit": unit, "show": shape, "readers": readers, "column": column or words}
    facts |= {"help": help or words, "decimals": decimals, "higher_is_better": higher_is_better}
    return field(default=None, metadata={"number": facts})


def plugin_number(
    words: str,
    unit: str = "",
    show: str = ".4f",
    column: str = "",
    help: str = "",
    decimals: int = 3,
    *,
    higher_is_better: bool = False,
) -> dict[str, Any]:
    """What a run writes of a number that a plugin measured, besides its value. Raises `ConfigError` for a format that
    does not write a number."""
    _shaped(show)(0.0)
    facts = {"words": words, "unit": unit, "show": show, "column": column or words, "help": help or words}
    return {**facts, "decimals": decimals, "higher_is_better": higher_is_better}


def read_number(key: str, facts: Mapping[str, Any]) -> Number:
    """The definition of a number that a plugin measured, from what a run wrote of it."""
    words = str(facts.get("words") or key)
    return Number(
        key,
        words,
        str(facts.get("unit") or ""),
        _shaped(str(facts.get("show") or ".4f")),
        Reader.ROWS | Reader.TABLE | Reader.SUMMARY | Reader.CARD,
        str(facts.get("column") or words),
        str(facts.get("help") or words),
        int(facts.get("decimals") or 3),
        bool(facts.get("higher_is_better")),
    )


def numbers_of(record: type) -> dict[str, Number]:
    """{key: definition} of the measured numbers that a dataclass declares, in its order."""
    found = ((entry.name, entry.metadata.get("number")) for entry in fields(record))
    return {name: Number(name, **facts) for name, facts in found if facts is not None}


def _shaped(shape: str) -> Callable[[float | None], str]:
    try:
        format(0.0, shape)
    except ValueError as error:
        raise ConfigError(f"show: {shape!r} does not write a number; use a format such as '.3f' or '.1%'") from error
    return lambda value: "" if value is None else format(value, shape)
