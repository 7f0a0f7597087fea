"""One number of the rows that a model was given: the same however they are shared out, another for other rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_arch.training.given_rows import GivenRows

GENERATOR = torch.Generator().manual_seed(0)
ROWS = {key: torch.randint(0, 500, (8, 16), generator=GENERATOR) for key in ("input_ids", "labels", "shift_labels")}


def number(rows: dict[str, Tensor], *sizes: int) -> str | None:
    given = GivenRows()
    for part in zip(*(tensor.split(list(sizes or (8,))) for tensor in rows.values()), strict=True):
        given.add(dict(zip(rows, part, strict=True)))
    return given.digest()


def test_batches_of_any_size_give_one_number() -> None:
    assert number(ROWS) == number(ROWS, 4, 4) == number(ROWS, 1, 2, 5) != None  # noqa: E711
    assert GivenRows().digest() is None


@pytest.mark.parametrize("key", ROWS)
def test_every_token_and_its_place_count(key: str) -> None:
    other = {**ROWS, key: ROWS[key].clone()}
    other[key][3, 5] = -100
    swapped = {**ROWS, key: ROWS[key][:, [1, 0, *range(2, 16)]]}
    assert len({number(ROWS), number(other), number(swapped)}) == 3


def test_the_order_of_rows_counts_and_which_are_labels() -> None:
    turned = {key: tensor.flip(0) for key, tensor in ROWS.items()}
    exchanged = {**ROWS, "input_ids": ROWS["labels"], "labels": ROWS["input_ids"]}
    assert len({number(ROWS), number(turned), number(exchanged), number(ROWS | {"other": ROWS["labels"]})}) == 3


def test_what_is_changed_in_a_batch_after_it_was_given_counts() -> None:
    seen, changed = GivenRows(), GivenRows()
    for _ in seen.watched([dict(ROWS)]):
        pass
    for batch in changed.watched([{key: tensor.clone() for key, tensor in ROWS.items()}]):
        batch["labels"][0, 0] = -100
    assert seen.digest() == number(ROWS) != changed.digest()


def test_what_has_no_row_for_each_row_is_left_out() -> None:
    positions = torch.arange(16)
    for other in (positions, positions[None], positions.expand(3, 8, 16)):
        given = GivenRows()
        given.add({**ROWS, "position_ids": other})
        assert given.digest() == number(ROWS)
