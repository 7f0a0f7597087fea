"""What the fast suite leaves out is run elsewhere, and a sample is spread over the cases."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sampling import mark_the_rest


class Case:
    """What `mark_the_rest` looks at of a test."""

    def __init__(self, nodeid: str, **marks: int):
        self.nodeid, self.marks = nodeid, {name: getattr(pytest.mark, name)(n).mark for name, n in marks.items()}

    def get_closest_marker(self, name: str) -> Any:
        return self.marks.get(name)

    def add_marker(self, name: str) -> None:
        self.marks[name] = getattr(pytest.mark, name).mark


@pytest.mark.parametrize(
    ("count", "wanted", "run"), [(10, 3, [0, 3, 6]), (4, 4, [0, 1, 2, 3]), (3, 9, [0, 1, 2]), (7, 1, [0])]
)
def test_as_many_cases_as_wanted_are_left_without_a_mark(count: int, wanted: int, run: list[int]) -> None:
    cases = [Case(f"file.py::test[{number}]", sampled=wanted) for number in range(count)]
    others = [Case("file.py::other[0]"), Case("file.py::test_of_another_name[0]", sampled=1)]
    mark_the_rest([*cases, *others])  # type: ignore[list-item]
    assert [number for number, case in enumerate(cases) if "rest" not in case.marks] == run
    assert not any("rest" in case.marks for case in others)


def test_what_is_slow_anyway_is_no_case_of_the_sample() -> None:
    cases = [Case(f"file.py::test[{number}]", sampled=2, **({"slow": 1} if number < 2 else {})) for number in range(4)]
    mark_the_rest(cases)  # type: ignore[arg-type]
    assert not any("rest" in case.marks for case in cases)


def test_no_case_at_all_is_a_mistake() -> None:
    with pytest.raises(pytest.UsageError, match=r"test: sampled\(0\)"):
        mark_the_rest([Case("file.py::test[0]", sampled=0)])  # type: ignore[list-item]
