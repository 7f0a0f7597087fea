"""The properties that every recurrence has, as checks over any op.

An op is called as `f(*inputs, initial_state=, output_final_state=, segment_ids=)` and returns (o, final state or None).
`inputs` are [B, T, ...] tensors (or None); an output or a state may be a tensor or a tuple of tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Op = Callable[..., tuple]


def leaves(tree: object) -> list[Tensor]:
    """The tensors of a nested tuple, None left out."""
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for branch in tree or () for leaf in leaves(branch)]


def assert_close(actual: object, expected: object, tolerance: float) -> None:
    """Each tensor within `tolerance` of the largest entry expected of it (0.1 at least: data are of order one)."""
    pairs = list(zip(leaves(actual), leaves(expected), strict=True))
    assert pairs
    for index, (a, e) in enumerate(pairs):
        assert a.shape == e.shape and a.isfinite().all(), f"tensor {index}"
        error = ((a.double() - e.double()).abs().max() / e.double().abs().max().clamp_min(0.1)).item()
        assert error <= tolerance, f"tensor {index}: relative error {error:.2e} > {tolerance:.0e}"


def with_gradients(op: Op, inputs: Sequence, **options: object) -> tuple:
    """Outputs and final states of `op`, and the gradients of a fixed random function of both."""
    variables = [x.detach().requires_grad_() for x in leaves((tuple(inputs), options.get("initial_state")))]
    rest = iter(variables)
    inputs = [None if x is None else next(rest) for x in inputs]
    state = options.get("initial_state")
    if state is not None:
        options["initial_state"] = next(rest) if isinstance(state, Tensor) else tuple(rest)
    outputs = leaves(op(*inputs, output_final_state=True, **options))
    generator = torch.Generator().manual_seed(7)
    # Exact in bf16, so that the gradient that arrives at a bf16 output is not rounded.
    weights = [torch.randn(x.shape, generator=generator).bfloat16().float().to(x.device) for x in outputs]
    loss = sum((x.float() * weight).sum() for x, weight in zip(outputs, weights, strict=True))
    return tuple(outputs), torch.autograd.grad(loss, variables, allow_unused=False)


def take(inputs: Sequence, start: int, stop: int) -> list:
    return [None if x is None else x[:, start:stop] for x in inputs]


def random_segments(batch: int, length: int, seed: int = 3) -> Tensor:
    """[B, T] document numbers with borders at different places in every row, also two in neighbouring tokens."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, length, generator=generator) < 0.2).long().cumsum(1)


def check_continuation(op: Op, inputs: Sequence, state: object, cuts: Sequence[int], tolerance: float) -> None:
    """Several calls that hand on the state equal one call, in outputs, final state and gradients."""

    def in_pieces(*inputs: Tensor, initial_state: object, output_final_state: bool) -> tuple:
        outputs = []
        for start, stop in itertools.pairwise(cuts):
            o, initial_state = op(*take(inputs, start, stop), initial_state=initial_state, output_final_state=True)
            outputs.append(o)
        return torch.cat(outputs, 1), initial_state

    assert cuts[0] == 0 and cuts[-1] == inputs[0].shape[1]
    pieces = with_gradients(in_pieces, inputs, initial_state=state)
    assert_close(pieces, with_gradients(op, inputs, initial_state=state), tolerance)


def check_segments(op: Op, inputs: Sequence, state: object, tolerance: float) -> None:
    """A packed row equals its documents run alone: the first from the initial state, the last to the final state."""
    batch, length = inputs[0].shape[:2]
    segments = random_segments(batch, length)

    def apart(*inputs: Tensor, initial_state: object, output_final_state: bool) -> tuple:
        rows, states = [], []
        for row in range(batch):
            borders = (segments[row, 1:] != segments[row, :-1]).nonzero().flatten() + 1
            cuts = [0, *borders.tolist(), length]
            start_state = _row(initial_state, row)
            documents = []
            for start, stop in itertools.pairwise(cuts):
                document = [None if x is None else x[row : row + 1] for x in take(inputs, start, stop)]
                o, end_state = op(*document, initial_state=start_state, output_final_state=True)
                documents.append(o)
                start_state = None
            rows.append(torch.cat(documents, 1))
            states.append(leaves(end_state))
        return torch.cat(rows), tuple(torch.cat(parts) for parts in zip(*states, strict=True))

    packed = with_gradients(op, inputs, initial_state=state, segment_ids=segments)
    assert_close(packed, with_gradients(apart, inputs, initial_state=state), tolerance)


def _row(state: object, row: int) -> object:
    return state[row : row + 1] if isinstance(state, Tensor) else tuple(x[row : row + 1] for x in state)


def check_padding(
    op: Op, inputs: Sequence, state: object, tolerance: float, fill: Sequence[float] | None = None
) -> None:
    """Tokens of zeros (or `fill`, one value per input) before, between and after the others change nothing else."""
    length = inputs[0].shape[1]
    padded_length = length + 9
    generator = torch.Generator().manual_seed(5)
    places = torch.randperm(padded_length - 4, generator=generator)[: length - 1].sort().values + 2
    places = torch.cat([places, torch.tensor([padded_length - 2])])  # two in front at least, one behind
    fill = [0.0] * len(inputs) if fill is None else fill

    def padded(*inputs: Tensor, **options: object) -> tuple:
        spread = []
        for x, value in zip(inputs, fill, strict=True):
            if x is None:
                spread.append(None)
            else:
                base = x.new_full((x.shape[0], padded_length, *x.shape[2:]), value)
                spread.append(base.index_copy(1, places, x))
        o, final = op(*spread, **options)
        return o[:, places], final

    expected = with_gradients(op, inputs, initial_state=state)
    assert_close(with_gradients(padded, inputs, initial_state=state), expected, tolerance)


def check_bit_causality(op: Op, inputs: Sequence, at: int) -> None:
    """A changed token leaves all earlier outputs bit-equal, and does change its own."""
    changed = [None if x is None else x.clone() for x in inputs]
    for x in changed:
        if x is not None:
            x[:, at] = x[:, at] * 0.5 - 0.1
    before, after = op(*inputs)[0], op(*changed)[0]
    assert torch.equal(before[:, :at], after[:, :at])
    assert not torch.equal(before[:, at], after[:, at])
