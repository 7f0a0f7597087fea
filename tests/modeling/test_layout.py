"""The layout of a batch: left padding costs nothing, other padding is moved behind the valid tokens and back."""

from __future__ import annotations

import torch

from hf_arch.layers.layout import build_layout, positions_from_mask


def _mask(*rows):
    return torch.tensor([[int(c) for c in row] for row in rows])


def test_a_full_batch_has_a_plain_layout():
    assert build_layout(None, None, False) == build_layout(_mask("111", "111"), None, True) == (None,) * 5


def test_left_padding_without_a_state_only_masks():
    layout = build_layout(_mask("0011", "1111"), None, has_state=False)
    assert layout.order is None
    assert torch.equal(layout.compact(torch.ones(2, 4, 3))[0, :, 0], torch.tensor([0.0, 0, 1, 1]))


def test_other_padding_is_moved_behind_the_valid_tokens_and_back():
    for mask, has_state in (
        (_mask("1100", "1111"), False),
        (_mask("1011", "0110"), False),
        (_mask("0111", "1111"), True),
    ):
        layout = build_layout(mask, None, has_state)
        x = torch.arange(8.0).view(2, 4, 1) + 1
        compact = layout.compact(x)
        assert torch.equal(layout.enter(x), compact) and torch.equal(layout.leave(compact), layout.restore(compact))
        assert torch.equal(layout.num_valid, mask.sum(1))
        for row, count in zip(range(2), mask.sum(1).tolist(), strict=True):
            assert torch.equal(compact[row, :count], x[row][mask[row].bool()])
            assert compact[row, count:].eq(0).all()
        assert torch.equal(layout.restore(layout.reorder(x)), x)


def test_positions_count_valid_tokens():
    assert positions_from_mask(_mask("00111", "11011"), 5).tolist() == [[0, 0, 0, 1, 2], [0, 1, 1, 2, 3]]
    assert positions_from_mask(_mask("00111"), 2).tolist() == [[1, 2]]
