"""Options are read once for each class and set of values, and nobody sees that."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from hf_arch.core import options as module
from hf_arch.core.errors import ConfigError
from hf_arch.core.options import Options, options, parse_options


@options
class Sized(Options):
    """Options of a component."""

    size: int | None = None
    factor: float = 1.0
    kind: str = "plain"
    flag: bool = False


@options
class Listed(Options):
    """Options that hold a list."""

    places: list[str] | None = None
    size: int = 1


@pytest.mark.parametrize(
    "values", [{}, {"size": 3}, {"factor": 2, "flag": True}, {"factor": -0.0}, {"factor": 0.0}, {"kind": "1"}]
)
def test_read_again_they_are_equal_objects_of_their_own(values: dict[str, Any]) -> None:
    first, second = (parse_options(Sized, values, "part") for _ in range(2))
    assert first is not second and repr(first) == repr(second) == repr(Sized(**values))
    second.size = 17
    assert first.size == parse_options(Sized, values, "part").size == values.get("size")
    with pytest.raises(Exception, match="size"):
        second.size = "wide"  # type: ignore[assignment]


def test_values_that_are_equal_and_of_other_types_are_told_apart() -> None:
    assert parse_options(Sized, {"factor": 2}, "part").factor == 2
    assert type(parse_options(Sized, {"factor": 2.0}, "part").factor) is float
    parse_options(Sized, {"size": 1}, "part")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"part.*flag: 1 is not allowed"):
            parse_options(Sized, {"flag": 1}, "part")
        with pytest.raises(ConfigError, match=r"part.*'sice'.*nearest.*'size'"):
            parse_options(Sized, {"sice": 1}, "part")
        with pytest.raises(ConfigError, match=r"part.*size: 1.0 is not allowed"):
            parse_options(Sized, {"size": 1.0}, "part")


def test_what_holds_a_list_is_read_anew() -> None:
    first, second = (parse_options(Listed, {"places": ["a"], "size": 2}, "part") for _ in range(2))
    assert first.places is not None and second.places is not None
    first.places.append("b")
    assert second.places == ["a"]


def test_a_class_that_nobody_has_any_more_is_forgotten() -> None:
    @options
    class Own(Options):
        """Of a plugin that is loaded again."""

        size: int = 1

    parse_options(Own, {"size": 2}, "part")
    assert Own in module._PARSED
    gone = weakref.ref(Own)
    del Own
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"^part: factor: -?(nan|inf) is not allowed; use a finite number"):
        parse_options(Sized, {"factor": value}, "part")
