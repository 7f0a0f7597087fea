"""The C kernels of norms and gates, row by row, against their forms in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_arch.ops.conv import causal_conv1d
from hf_arch.ops.linear_attention import linear_attention
from hf_arch.ops.norm import l2_norm, rms_norm, sigmoid_gated_rms_norm, silu_gated_rms_norm
from hf_arch.ops.parts import linear_parts
from hf_arch.ops.rotary import apply_rotary
from hf_arch.ops.selective_scan import selective_scan
from hf_arch.ops.silu_gate import silu_gated
from hf_arch.ops.softplus import softplus
from hf_arch.ops.squared_relu import squared_relu
from hf_arch.ops.ssd import ssd
from hf_arch.ops.token_mix import token_mix
from tests.ops.test_native import (
    DELTAS,
    delta_inputs,
    delta_of,
    head_inputs,
    needs_kernels,
    run,
    scan_inputs,
    slot_inputs,
    slots,
)


def rowwise(kind: str) -> Any:
    """A norm or a gate as a function of its tensors."""
    return {
        "norm": lambda x, weight=None: rms_norm(x, weight, 1e-3),
        "l2": lambda x: l2_norm(x, 1e-3),
        "gate after": lambda x, gate, weight=None: silu_gated_rms_norm(x, weight, gate, 1e-3),
        "gate first": lambda x, gate, weight=None: silu_gated_rms_norm(x, weight, gate, 1e-3, gate_first=True),
        "sigmoid gate": lambda x, gate, weight=None: sigmoid_gated_rms_norm(x, weight, gate, 1e-3),
        "gate alone": silu_gated,
        "mix": lambda x, gate, weight: torch.stack(token_mix(x, gate, weight)),
        "softplus": softplus,
        "relu2": squared_relu,
    }[kind]


def rowwise_inputs(kind: str, shape: tuple[int, ...], weight: tuple[int, ...] | None = None) -> dict[str, Tensor]:
    torch.manual_seed(shape[0])
    gate = {"gate": 3 * torch.randn(shape)} if "gate" in kind or kind == "mix" else {}
    return {"x": torch.randn(shape), **gate, **({} if weight is None else {"weight": torch.randn(weight)})}


def run_rowwise(kind: str, inputs: dict[str, Tensor]) -> list[Tensor]:
    given = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    y = rowwise(kind)(**given)
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    return [y.detach(), *(x.grad for x in given.values())]


ROWWISE = [
    *((kind, weight) for kind in ("norm", "gate after", "gate first", "sigmoid gate") for weight in (None, 1, 2)),
    ("l2", None),
    ("gate alone", None),
    ("mix", 2),
    ("softplus", None),
    ("relu2", None),
]


@needs_kernels
@pytest.mark.parametrize(("kind", "weight"), ROWWISE)
@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 3, 16), (33, 2, 37), (70, 1, 300)])
def test_norms_and_gates_are_those_of_torch(
    kind: str, weight: int | None, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that fill no vector, groups with weights of their own, more rows than a task has."""
    inputs = rowwise_inputs(kind, shape, None if weight is None else shape[-weight:])
    found = run_rowwise(kind, inputs)
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    expected = run_rowwise(kind, inputs)
    if shape[-1] > 3 and kind not in ("mix", "relu2"):  # whose few roundings may be the same
        assert any(not torch.equal(x, y) for x, y in zip(found, expected, strict=True)), "both took the same form"
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5 * float(y.abs().max()))


@needs_kernels
@pytest.mark.parametrize("kind", ["norm", "gate after", "gate first", "sigmoid gate", "gate alone"])
def test_a_row_moves_no_other_one_and_what_is_not_a_number_stays_in_it(kind: str) -> None:
    inputs = rowwise_inputs(kind, (70, 2, 37))
    y, *gradients = run_rowwise(kind, inputs)
    inputs["x"][40, 1, 5] = float("nan")
    assert run_rowwise(kind, inputs)[0][40, 1].isnan().any()
    for other, before in zip(run_rowwise(kind, inputs), (y, *gradients), strict=True):
        same = [torch.equal(row, old) for row, old in zip(other, before, strict=True)]
        assert all(same[:40] + same[41:])


@needs_kernels
@pytest.mark.parametrize("kind", ["gate after", "gate first", "gate alone"])
def test_gates_are_shut_and_open_far_from_zero(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = rowwise_inputs(kind, (4, 2, 24))
    inputs["gate"] = torch.tensor([-1e4, -100.0, -30.0, 0.0, 30.0, 1e4]).repeat(4, 2, 4)
    found = run_rowwise(kind, inputs)
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    for x, y in zip(found, run_rowwise(kind, inputs), strict=True):
        torch.testing.assert_close(
            x, y, rtol=1e-5, atol=1e-30 if y.abs().max() < 1e-30 else 1e-5 * float(y.abs().max())
        )


@needs_kernels
def test_second_derivatives_of_a_gate_are_those_of_torch() -> None:
    x, gate = (torch.randn(5, 20, requires_grad=True) for _ in range(2))
    found = [
        torch.autograd.grad(torch.autograd.grad(y.square().sum(), (x, gate), create_graph=True)[1].sum(), (x, gate))
        for y in (silu_gated(x, gate), x * torch.nn.functional.silu(gate))
    ]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def turned(x: Tensor, angles: Tensor, head_axis: int, weights: Tensor, create_graph: bool = False) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = apply_rotary(x, angles.cos(), angles.sin(), head_axis)
    (grad,) = torch.autograd.grad((y * weights).sum(), x, create_graph=create_graph)
    return [y, grad]


@needs_kernels
@pytest.mark.parametrize("head_axis", [1, 2])
@pytest.mark.parametrize(("width", "share"), [(8, 8), (42, 42), (40, 12)])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("strided", [False, True])
def test_rotations_are_those_of_torch(
    head_axis: int, width: int, share: int, rows: int, strided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole heads and a share of them, angles for all rows or for each, heads before tokens and after, in any strides;
    angles whose halves differ."""
    torch.manual_seed(width)
    x = torch.randn(3, 5, 7, 2 * width)[..., :width] if strided else torch.randn(3, 7, 5, width).transpose(1, 2)
    angles = torch.randn(rows, x.shape[3 - head_axis], share)
    weights = torch.linspace(-1, 1, x.numel()).view(x.shape)
    found = turned(x, angles, head_axis, weights)
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    for one, other in zip(found, turned(x, angles, head_axis, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    monkeypatch.delenv("HF_ARCH_BACKEND")
    torch.testing.assert_close(turned(x, angles, head_axis, weights, create_graph=True)[1], found[1])


@needs_kernels
def test_second_derivatives_of_a_mix_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.randn(shape, requires_grad=True) for shape in ((2, 5, 20), (2, 5, 20), (3, 20))]

    made_by: list[str] = []

    def second() -> tuple[Tensor, ...]:
        mixed = token_mix(*tensors)
        made_by.append(mixed[0].grad_fn.name())
        y = torch.stack(mixed).square().sum()
        first = torch.autograd.grad(y, tensors, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in first), tensors)

    found = second()
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    for one, other in zip(found, second(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    assert "Mix" in made_by[0] and "Mix" not in made_by[1]


@needs_kernels
def test_checkpoints_look_at_what_is_saved_once() -> None:
    x, cos, sin = torch.randn(1, 2, 5, 8, requires_grad=True), torch.randn(1, 5, 8), torch.randn(1, 5, 8)

    def passes(x: Tensor) -> Tensor:
        return silu_gated(silu_gated_rms_norm(apply_rotary(x, cos, sin), None, x, 1e-3), x)

    (expected,) = torch.autograd.grad(passes(x).square().sum(), x)
    (found,) = torch.autograd.grad(checkpoint(passes, x, use_reentrant=False).square().sum(), x)
    assert torch.equal(found, expected)


@needs_kernels
def test_learned_angles_get_a_gradient() -> None:
    x, cos, sin = (torch.randn(1, *shape, requires_grad=True) for shape in ((2, 5, 8), (5, 8), (5, 8)))
    found = torch.autograd.grad(apply_rotary(x, cos, sin).square().sum(), (x, cos, sin))
    assert all(grad.abs().max() > 0 for grad in found)


@needs_kernels
@pytest.mark.parametrize(("kind", "weight"), ROWWISE)
def test_threads_do_not_move_a_bit(kind: str, weight: int | None) -> None:
    shape, before, found = (99, 2, 300), torch.get_num_threads(), []
    inputs = rowwise_inputs(kind, shape, None if weight is None else shape[-weight:])
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(run_rowwise(kind, inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


@needs_kernels
@pytest.mark.parametrize("kind", ["gate after", "gate first"])
def test_norms_in_half_precision_have_no_kernel(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {name: x.bfloat16() for name, x in rowwise_inputs(kind, (9, 40)).items()}
    found = run_rowwise(kind, inputs)
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    for one, other in zip(found, run_rowwise(kind, inputs), strict=True):
        assert one.dtype == torch.bfloat16 and torch.equal(one, other)


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 3), (9, 40), (3, 5000)])
def test_a_gate_in_bf16_is_that_in_fp32_rounded_once(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, gate, grad = (3 * torch.randn(shape).bfloat16() for _ in range(3))
    x[0, 0], gate[0, 1], grad[0, 2] = torch.inf, torch.nan, 2.0**-130
    found = []
    for widened in (False, True):
        leaves = [each.float() if widened else each.clone() for each in (x, gate)]
        y = silu_gated(*(leaf.requires_grad_() for leaf in leaves))
        found.append([y, *torch.autograd.grad(y, leaves, grad.to(y.dtype))])
    for one, other in zip(*found, strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.equal(one.isnan(), other.isnan())
        assert torch.equal(one.nan_to_num(7.0), other.bfloat16().nan_to_num(7.0))


@needs_kernels
def test_rotations_of_bf16_are_those_of_the_same_in_fp32() -> None:
    torch.manual_seed(0)
    x, angles = torch.randn(2, 3, 5, 8).bfloat16(), torch.rand(1, 5, 6)
    found = []
    for leaf in (x.clone().requires_grad_(), x.float().requires_grad_()):
        y = apply_rotary(leaf, angles.cos(), angles.sin())
        assert y.dtype == torch.float32
        found.append([y, torch.autograd.grad(y.square().sum(), leaf)[0].bfloat16()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@needs_kernels
@pytest.mark.parametrize("size", [1, 7, 9])
def test_shapes_that_no_kernel_reads_are_torchs(size: int) -> None:
    """A weight of one number is repeated, others are refused; so are angles of other rows or lengths."""
    x, weight = torch.randn(2, 3, 8, requires_grad=True), torch.randn(size)
    if size == 1:
        torch.testing.assert_close(rms_norm(x, weight, 1e-3), rms_norm(x, weight.expand(8), 1e-3))
    else:
        with pytest.raises(RuntimeError):
            rms_norm(x, weight, 1e-3)
    heads = torch.randn(2, 4, 5, 8, requires_grad=True)
    for shape in ((size + 2, 5, 8), (2, size + 5, 8), (2, 5, 2 * size + 8)):
        with pytest.raises(RuntimeError):
            apply_rotary(heads, torch.randn(shape), torch.randn(shape))
    with pytest.raises(RuntimeError):
        silu_gated(x, torch.randn(2, 3, size + 8))
    with pytest.raises((RuntimeError, NotImplementedError)):
        rms_norm(x, torch.randn(8, device="meta"), 1e-3).sum().item()


@needs_kernels
@pytest.mark.parametrize("fixed", ["x", "gate"])
def test_a_second_derivative_where_one_factor_is_fixed(fixed: str) -> None:
    tensors = {"x": torch.randn(5, 20), "gate": torch.randn(5, 20)}
    (name,) = set(tensors) - {fixed}
    leaf = tensors[name].requires_grad_()
    found = [
        torch.autograd.grad(torch.autograd.grad(y.square().sum(), leaf, create_graph=True)[0].sum(), leaf)[0]
        for y in (silu_gated(**tensors), tensors["x"] * torch.nn.functional.silu(tensors["gate"]))
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@needs_kernels
def test_a_compiler_traces_torchs_forms_in_one_graph() -> None:
    x, cos, sin = torch.randn(1, 2, 5, 8, requires_grad=True), torch.randn(1, 5, 8), torch.randn(1, 5, 8)

    def passes(x: Tensor) -> Tensor:
        return silu_gated(apply_rotary(x, cos, sin), x)

    compiled = torch.compile(passes, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), passes(x))


def gated_scan(**given: Any) -> Any:
    return selective_scan.chunk(**given, z=given["x"], dt_softplus=True)


RECURRENCES: dict[str, tuple[Any, dict[str, Tensor]]] = {
    "vector decay": (linear_attention.chunk, head_inputs(2, 9, 2, 16, 8, "bonus, vector")),
    **{form: (delta_of(form), delta_inputs(2, 9, 2, 16, 8, form)) for form in DELTAS},
    "slots": (slots, slot_inputs(2, 9, 2, 16, 8)),
    "scan": (selective_scan.chunk, scan_inputs(2, 9, 16, 4)),
    "gated scan": (gated_scan, scan_inputs(2, 9, 16, 4)),
    "state space duality": (
        ssd.chunk,
        {
            "x": torch.randn(2, 9, 2, 8),
            "dt": torch.rand(2, 9, 2),
            "A": -torch.rand(2),
            "B": torch.randn(2, 9, 1, 16),
            "C": torch.randn(2, 9, 1, 16),
            "D": torch.randn(2),
            "initial_state": torch.randn(2, 2, 8, 16),
        },
    ),
}


def rows_and_parts() -> list[Tensor]:
    """What the kernels that are no recurrences make of a row and its gradient."""
    torch.manual_seed(0)
    x, gate, angles, taps, amounts = (
        torch.randn(shape, dtype=torch.float32) for shape in (*[(1, 2, 5, 8)] * 3, (8, 4), (2, 8))
    )
    leaf, taps = x.clone().requires_grad_(), taps.requires_grad_()
    turned = apply_rotary(leaf, angles[:, 0].cos(), angles[:, 0].sin())
    y = silu_gated(silu_gated_rms_norm(turned, gate[0, 0, 0], gate, 1e-3), l2_norm(leaf)) + softplus(leaf)
    mixed = token_mix(leaf[0], gate[0], amounts.requires_grad_())
    rows = causal_conv1d(leaf[0], taps, activation="silu")[0]
    (y.sum() + sum(each.sum() for each in (*mixed, *linear_parts(leaf, x[0, 0, :4], None, (3, 1)), rows))).backward()
    return [y.detach(), rows.detach(), leaf.grad, taps.grad]  # type: ignore[list-item]


@needs_kernels
@pytest.mark.parametrize("what", ["rows", *RECURRENCES])
def test_the_default_dtype_does_not_matter(what: str) -> None:
    def results() -> list[Tensor]:
        return rows_and_parts() if what == "rows" else run(*RECURRENCES[what])

    expected = results()
    torch.set_default_dtype(torch.float64)
    try:
        found = results()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(one.dtype == torch.float32 for one in found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
