"""The token before each one, kept across calls: what RWKV mixes into its inputs."""

from __future__ import annotations

from torch import Tensor

from ..ops.conv import token_shift
from ..ops.token_mix import shifted_token_mix, token_mix
from .layout import SequenceLayout
from .state import LayerState


def previous_token(x: Tensor, layout: SequenceLayout, state: LayerState, slot: int = 0) -> Tensor:
    """x [B, T, D] moved by one token, zero before the first of a document; the last one is kept as the convolution
    state `slot`."""
    before, last = token_shift(
        x,
        initial_state=state.conv(slot),
        segment_ids=layout.segment_ids,
        output_final_state=bool(state),
        num_valid=layout.num_valid,
    )
    state.write_conv(last, slot)
    return before


def mixed_with_previous(
    x: Tensor, amounts: Tensor, layout: SequenceLayout, state: LayerState, slot: int = 0
) -> tuple[Tensor, ...]:
    """x + (previous - x) * m [B, T, D] for each m of `amounts` [N, D], with `previous_token`."""
    if not state:  # nothing to go on from, and nothing to keep
        return shifted_token_mix(x, amounts, layout.segment_ids)
    return token_mix(x, previous_token(x, layout, state, slot), amounts)
