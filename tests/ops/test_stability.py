"""Long rows under extreme gates: every op stays finite and near the naive loop in fp64, outputs and gradients.

The gates of 4,096 tokens are all open (they forget next to nothing), all shut (e^-50 and less), or of both kinds and
mild ones in between; packed rows have documents of one to hundreds of tokens on top.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.cases import CASES, B
from tests.ops.recurrences import assert_close, leaves, with_gradients

LENGTH = 4096
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2**-7}  # bf16: outputs and gradients are rounded once, at the end
ROWS = [
    (name, gates) for name, case in CASES.items() for gates in (("open", "shut", "mixed") if case.gated else ("open",))
]


def documents() -> Tensor:
    """[B, T], borders at a tenth of the first tokens and at one in five hundred later on."""
    often = torch.where(torch.arange(LENGTH) < 400, 0.1, 0.002)
    return (torch.rand(B, LENGTH) < often).long().cumsum(1)


def in_bfloat16(x: Tensor | None) -> Tensor | None:
    """Where that loses nothing, so that both dtypes have one reference: parameters and gates enter in fp32."""
    return x.bfloat16() if x is not None and x.dim() > 2 and torch.equal(x, x.bfloat16().float()) else x


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["row", "documents"])
@pytest.mark.parametrize(("name", "gates"), ROWS)
def test_long_rows(name: str, gates: str, packed: bool) -> None:
    case = CASES[name]
    inputs = case.inputs(LENGTH, gates)
    options = {"segment_ids": documents()} if packed else {}
    exact = with_gradients(case.naive, [None if x is None else x.double() for x in inputs], **options)
    for dtype, tolerance in TOLERANCES.items():
        given = inputs if dtype == torch.float32 else [in_bfloat16(x) for x in inputs]
        found = with_gradients(case.op, given, **options)
        assert all(x.isfinite().all() for x in leaves(found))
        assert_close(found, exact, tolerance)
