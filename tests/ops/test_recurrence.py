"""The contract of all recurrences: one signature for every form, shapes checked once, the form chosen at the call."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from pathlib import Path

import pytest
import torch

from hf_arch.ops import recurrence
from hf_arch.ops.catalogue import RECURRENCES, describe_all
from hf_arch.ops.delta_rule import delta_rule
from hf_arch.ops.diagonal_ssm import diagonal_ssm
from hf_arch.ops.selective_scan import selective_scan
from hf_arch.ops.slots import gated_slot_attention
from tests.ops.cases import CASES, B, Case
from tests.ops.recurrences import assert_close

BY_NAME = {op.__name__: op for op in RECURRENCES}


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("bonus", "buckets")])
def test_every_form_takes_the_same_arguments(name: str) -> None:
    case = CASES[name]
    op = getattr(case.op, "func", case.op)
    assert BY_NAME[op.__name__] is op
    inputs, states = case.inputs(1, "mild"), case.state()
    options = {"initial_state": states[0] if len(states) == 1 else states, "output_final_state": True}
    expected = op.naive(*inputs, **options)
    for form in (op, op.chunk, op.step):
        assert_close(form(*inputs, **options), expected, 1e-5)
        assert form(*inputs)[1] is None


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_shape_names_its_argument(name: str) -> None:
    """Each tensor in turn one entry longer along each axis: refused by name, or by that of the one it differs from."""
    case = CASES[name]
    inputs = case.inputs(3, "mild")
    with pytest.raises(ValueError, match=r"^initial_state: shape .* is not allowed; it must be \[B, "):
        case.op(*inputs, initial_state=torch.zeros(B))
    with pytest.raises(ValueError, match=r"^segment_ids: shape \(2, 4\) is not allowed; it must be \[B, T\] \(B = 2, "):
        case.op(*inputs, segment_ids=torch.zeros(B, 4, dtype=torch.long))
    for index, x in enumerate(inputs):
        for axis in range(0 if x is None else x.dim()):
            wrong = torch.cat([x, x.narrow(axis, 0, 1)], axis)
            if _is_free(case, index, axis):
                continue
            with pytest.raises(ValueError, match=r"^\w+: shape .* is not allowed; "):
                case.op(*inputs[:index], wrong, *inputs[index + 1 :])


def _is_free(case: Case, index: int, axis: int) -> bool:
    """Whether the axis stands in no other input: V of the values alone."""
    op = getattr(case.op, "keywords", {}).get("op", getattr(case.op, "func", case.op))
    pairs = zip(case.inputs(3, "mild"), op.declaration.arrays.values(), strict=False)
    axes = [next((s for s in array.shapes if x is not None and len(s) == x.dim()), ()) for x, array in pairs]
    return not any(axes[index][axis] in others for other, others in enumerate(axes) if other != index)


def test_wrong_calls_are_refused() -> None:
    q, k, v, beta, g = CASES["gated delta"].inputs(3, "mild")
    with pytest.raises(ValueError, match=r"beta: None is not allowed; it must be \[B, T, H\] \(B = 2, T = 3, H = 2\)"):
        delta_rule(q, k, v, None)
    with pytest.raises(ValueError, match="v: 3 tokens are not allowed in a step"):
        delta_rule.step(q, k, v, beta, g)
    with pytest.raises(ValueError, match="v: 0 tokens are not allowed"):
        delta_rule(*(x[:, :0] for x in (q, k, v, beta, g)))
    with pytest.raises(ValueError, match="chunk_size: 24 is not allowed"):
        delta_rule(*(x[:, :1] for x in (q, k, v, beta, g)), chunk_size=24)
    with pytest.raises(ValueError, match="selective_scan: flash-linear-attention has no kernel for these arguments"):
        selective_scan.kernel(*CASES["mamba"].inputs(3, "mild"))
    with pytest.raises(ValueError, match=r"initial_state: shape \(2, 2, 4, 6\) is not allowed; it must be .* with "):
        gated_slot_attention(*CASES["gated slots"].inputs(3, "mild"), initial_state=torch.zeros(2, 2, 4, 6))
    u, log_dt, A_re, _, C, *rest = CASES["s4d"].inputs(3, "mild")
    with pytest.raises(ValueError, match=r"C: shape \(3, 4, 2\) is not allowed; a real system has \[D, N\]"):
        diagonal_ssm(u, log_dt, A_re, None, C, *rest)


def test_a_shape_found_right_is_no_excuse_for_another() -> None:
    q, k, v, beta, g = CASES["gated delta"].inputs(3, "mild")
    for _ in range(2):
        delta_rule(q, k, v, beta, g)
        with pytest.raises(ValueError, match="k: shape"):
            delta_rule(q, k[..., :3], v, beta, g)
    state = delta_rule(q, k, v, beta, g, output_final_state=True)[1]
    assert state.dtype == torch.float32
    wide = delta_rule(q, k, v, beta.double(), g, output_final_state=True)[1]
    assert wide.dtype == torch.float64


def test_the_form_is_chosen_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    call = delta_rule.declaration
    for form in ("naive", "chunk", "step", "kernel"):
        monkeypatch.setattr(call, form, lambda self, form=form: (taken.append(form), (self.v, None))[1])
    inputs = CASES["gated delta"].inputs(3, "mild")
    one = [x[:, :1] for x in inputs]
    delta_rule(*inputs)
    delta_rule(*one)
    monkeypatch.setattr(recurrence, "use_fla", lambda like, rounds_fp32: True)
    delta_rule(*inputs)  # with heads too narrow for a kernel
    monkeypatch.setattr(call, "covers", lambda self: True)
    delta_rule(*inputs)
    delta_rule(*one)
    monkeypatch.setattr(call, "covers", lambda self: False)
    delta_rule(*inputs)
    assert taken == ["chunk", "step", "chunk", "kernel", "step", "chunk"]


def test_an_op_is_one_object_also_when_pickled_and_copied() -> None:
    for op in RECURRENCES:
        assert pickle.loads(pickle.dumps(op)) is op and copy.deepcopy(op) is op


def test_the_description_names_every_argument() -> None:
    text = describe_all()
    for op in RECURRENCES:
        section = re.search(rf"## `{op.__name__}`\n(.*?)(\n## |\Z)", text, re.S).group(1)
        assert re.findall(r"^\| `(\w+)`", section, re.M) == list(inspect.signature(op).parameters)
        assert all(re.findall(r"^\| `\w+` \|.*\| (.*) \|$", section, re.M)), "every argument has a meaning"


def test_the_page_on_recurrences_is_up_to_date() -> None:
    written = (Path(__file__).parents[2] / "docs/recurrences.md").read_text()
    assert written == describe_all(), "run: python -m hf_arch.ops.catalogue > docs/recurrences.md"
