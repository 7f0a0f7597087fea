"""All recurrences, and the page that says which one computes yours.

python -m hf_arch.ops.catalogue > docs/recurrences.md
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from inspect import cleandoc
from typing import Any

from .delta_rule import delta_rule, dplr_delta_rule
from .diagonal_ssm import diagonal_ssm
from .elementwise import hgrn_scan
from .linear_attention import linear_attention
from .log_linear import log_linear_attention
from .mesa import mesa
from .momentum_delta import momentum_delta_rule
from .rank_attention import rank_attention
from .recurrence import Call, Recurrence
from .selective_scan import selective_scan
from .shapes import declared_arguments, written
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
    return "\n".join([HEAD, *(describe(op) for op in RECURRENCES)])


def describe(op: Recurrence[..., Any]) -> str:
    """The declaration of one recurrence in Markdown."""
    declared = op.declaration
    formula, colon, meaning = cleandoc(declared.__doc__).partition("\n")[0].partition(": ")
    head = f"`{formula}`: {meaning}" if colon else formula
    text = cleandoc(declared.__doc__).partition("\n")[2]
    state = " with ".join(written(shapes) for shapes in declared.state_shapes)
    parts, arguments = {part.name: part for part in fields(declared)}, declared_arguments(declared)
    rows = ["| argument | shape | default | meaning |", "|---|---|---|---|"]
    for name in op.__signature__.parameters:
        default = "" if parts[name].default is MISSING else parts[name].default
        shape = state if name == "initial_state" else written(arguments[name].shapes)
        rows.append(f"| `{name}` | {shape} | {default} | {arguments[name].text} |")
    step = "the naive form" if declared.step is Call.step else "a form of its own"
    kernel = "where it covers the arguments" if declared.has_kernel() else "none"
    title = f"## `{op.__name__}`\n\nIn `{op.__module__}`. {head}" + (f"\n{text}" if text else "")
    forms = f"State: {state}. One token: {step}. Kernel of flash-linear-attention: {kernel}.\n"
    return "\n\n".join([title, "\n".join(rows), forms])


if __name__ == "__main__":
    print(describe_all(), end="")
