"""All recurrences, and the page that says which one computes yours.

python -m hf_arch.ops.catalogue > docs/recurrences.md
"""

from __future__ import annotations

from typing import Any

from .delta_rule import delta_rule, dplr_delta_rule
from .diagonal_ssm import diagonal_ssm
from .elementwise import hgrn_scan
from .linear_attention import linear_attention
from .log_linear import log_linear_attention
from .mesa import mesa
from .momentum_delta import momentum_delta_rule
from .rank_attention import rank_attention
from .recurrence import Recurrence
from .selective_scan import selective_scan
from .slots import abc_attention, gated_slot_attention
from .softmax_average import softmax_average
from .ssd import ssd

RECURRENCES: tuple[Recurrence[..., Any], ...] = (
    linear_attention,
    rank_attention,
    delta_rule,
    dplr_delta_rule,
    momentum_delta_rule,
    mesa,
    log_linear_attention,
    gated_slot_attention,
    abc_attention,
    softmax_average,
    hgrn_scan,
    selective_scan,
    ssd,
    diagonal_ssm,
)


HEAD = """# The recurrences

Which op computes my recurrence? An op is called with the arguments of its table and returns (output, final state or
None). `NAME.naive` is the loop over tokens of its formula, `NAME.chunk` the fast form of a whole row, `NAME.step` one
token, `NAME.kernel` flash-linear-attention's kernel. All take the same arguments, and the plain call picks one by the
number of tokens and the device of the tensors. `tests/ops/test_expressible.py` writes further published recurrences
with these ops.

Letters of shapes: B batch, T time, H heads, K key dim, V value dim, N state, M slots, R reads, W writes, D and E
channels, P head dim, G groups. States are fp32 whatever the activations. This page is made from the declarations in
`hf_arch/ops/`.
"""


def describe_all() -> str:
    """Every recurrence in Markdown: formula, arguments with shapes, state and forms."""
    return "\n".join([HEAD, *(op.describe() for op in RECURRENCES)])


if __name__ == "__main__":
    print(describe_all(), end="")
