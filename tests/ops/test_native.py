"""The C kernels against the forms in plain torch that they stand for, and what happens where there are none."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from hf_arch.ops import native, rotary
from hf_arch.ops.conv import causal_conv1d
from hf_arch.ops.delta_rule import delta_rule, dplr_delta_rule
from hf_arch.ops.linear_attention import linear_attention
from hf_arch.ops.selective_scan import selective_scan
from hf_arch.ops.slots import gated_slot_attention

needs_kernels = pytest.mark.skipif(rotary.KERNELS.library is None, reason="no C compiler")
# Shapes around the 8 steps of a chunk, the lanes of a vector (4 to 16) and the 128 channels of a task.
SCANS = [(1, 1, 3, 2), (2, 7, 16, 5), (2, 8, 8, 1), (1, 25, 131, 16), (3, 40, 257, 4)]
HEADS = [(2, 5, 1, 3, 2), (2, 37, 3, 20, 13), (1, 70, 2, 32, 33), (1, 33, 1, 130, 60)]
DELTAS = ["decay", "no decay", "a decay a channel", "rank one"]
CONVS = [(1, 2, 3, 4), (2, 9, 16, 1), (2, 33, 131, 4), (1, 5, 257, 7)]


def scan_inputs(batch: int, length: int, width: int, states: int, strength: float = 1.0) -> dict[str, Tensor]:
    torch.manual_seed(length)
    return {
        "x": torch.randn(batch, length, width),
        "dt": strength * torch.rand(batch, length, width),
        "A": -4 * torch.rand(width, states),
        "B": torch.randn(batch, length, states),
        "C": torch.randn(batch, length, states),
        "D": torch.randn(width),
        "initial_state": torch.randn(batch, width, states),
    }


def head_inputs(batch: int, length: int, heads: int, keys: int, values: int, form: str) -> dict[str, Tensor]:
    torch.manual_seed(length)
    shape = (batch, length, heads) if form.endswith("a head") else (batch, length, heads, keys)
    return {
        "q": torch.randn(batch, length, heads, keys),
        "k": torch.randn(batch, length, heads, keys),
        "v": torch.randn(batch, length, heads, values),
        "g": -2 * torch.rand(shape),
        **({"bonus": torch.rand(heads, keys)} if form.startswith("bonus") else {}),
        "initial_state": torch.randn(batch, heads, keys, values),
    }


def delta_inputs(batch: int, length: int, heads: int, keys: int, values: int, form: str) -> dict[str, Tensor]:
    """Of `delta_rule` with a decay a head or none, or of `dplr_delta_rule`."""
    inputs = head_inputs(batch, length, heads, keys, values, "vector" if form in DELTAS[2:] else "a decay a head")
    inputs["k"] = normalize(inputs["k"], dim=-1)
    if form == "rank one":
        a = normalize(torch.randn(batch, length, heads, keys), dim=-1)
        r, w, b = inputs.pop("q"), inputs.pop("g"), -torch.rand(*a.shape[:3], 1) * a
        return {**inputs, "r": r, "w": w, "a": a, "b": b}
    if form == "no decay":
        del inputs["g"]
    return {**inputs, "beta": torch.rand(batch, length, heads)}


def delta_of(form: str) -> Any:
    return dplr_delta_rule.chunk if form == "rank one" else delta_rule.chunk


def slots(**given: Any) -> tuple[Tensor, Tensor]:
    """Gated slot attention with one state, that of its two."""
    start = given.pop("initial_state", None)
    if start is not None:
        keys = given["k"].shape[-1]
        given["initial_state"] = start[..., :keys].mT, start[..., keys:]
    o, (keys, values) = gated_slot_attention.chunk(**given)
    return o, torch.cat([keys.mT, values], -1)


def slot_inputs(batch: int, length: int, heads: int, keys: int, values: int, number: int = 9) -> dict[str, Tensor]:
    torch.manual_seed(length)
    sides = {"q": keys, "k": keys, "v": values, "s": number, "f": number}
    inputs = {name: torch.randn(batch, length, heads, side) for name, side in sides.items()}
    return {**inputs, "f": -inputs["f"].abs(), "initial_state": torch.randn(batch, heads, number, keys + values)}


def run(function: object, inputs: dict[str, Tensor], **options: object) -> list[Tensor]:
    """Outputs, final states and gradients of a sum of both with fixed weights."""
    given = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    y, state = function(**given, output_final_state=True, **options)  # type: ignore[operator]
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape), torch.linspace(-1, 1, state.numel()).view(state.shape)
    ((y.float() * weights[0]).sum() + (state.float() * weights[1]).sum()).backward()
    return [y.detach(), state.detach(), *(x.grad for x in given.values())]


def assert_same(
    function: object, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, **options: object
) -> None:
    found = run(function, inputs, **options)
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    expected = run(function, inputs, **options)
    assert any(not torch.equal(x, y) for x, y in zip(found, expected, strict=True)), "both took the same form"
    for x, y in zip(found, expected, strict=True):
        tolerance = 1e-5 if y.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance * float(y.abs().max()))


@needs_kernels
@pytest.mark.parametrize("sizes", SCANS)
@pytest.mark.parametrize("documents", [False, True])
def test_the_scan_is_that_of_torch(
    sizes: tuple[int, int, int, int], documents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = torch.arange(sizes[1]).div(3, rounding_mode="floor").expand(sizes[0], -1) if documents else None
    assert_same(selective_scan.chunk, scan_inputs(*sizes), monkeypatch, segment_ids=segments)


@needs_kernels
@pytest.mark.parametrize("sizes", SCANS)
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("fused", ["gates", "step sizes", "both"])
def test_gates_and_step_sizes_within_the_scan_are_those_of_torch(
    sizes: tuple[int, int, int, int], documents: bool, fused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B and C are parts of a wider tensor here."""
    segments = torch.arange(sizes[1]).div(3, rounding_mode="floor").expand(sizes[0], -1) if documents else None
    inputs = scan_inputs(*sizes)
    if fused != "gates":
        inputs["dt"] = 5 * torch.randn_like(inputs["dt"])
    if fused != "step sizes":
        inputs["z"] = 3 * torch.randn_like(inputs["x"])
    inputs["weights"] = torch.cat((inputs.pop("B"), inputs.pop("C")), -1)

    def scan(weights: Tensor, **given: Any) -> tuple[Tensor, Tensor | None]:
        B, C = weights.chunk(2, -1)
        return selective_scan.chunk(**given, B=B, C=C, dt_softplus=fused != "gates")

    assert_same(scan, inputs, monkeypatch, segment_ids=segments)


@needs_kernels
def test_the_scan_holds_decays_that_vanish_and_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = scan_inputs(2, 20, 24, 4, strength=200.0)
    inputs["x"] = inputs["x"].bfloat16()
    assert_same(selective_scan.chunk, inputs, monkeypatch)


@needs_kernels
def test_a_step_size_of_zero_keeps_the_state_to_the_bit() -> None:
    inputs = scan_inputs(1, 12, 20, 3)
    inputs["dt"] = torch.zeros_like(inputs["dt"])
    _, state = selective_scan.chunk(**inputs, output_final_state=True)
    assert torch.equal(state, inputs["initial_state"])


@needs_kernels
@pytest.mark.parametrize("place", ["x", "dt", "A"])
def test_what_is_not_a_number_stays_visible(place: str) -> None:
    inputs = scan_inputs(1, 12, 20, 3)
    inputs[place].view(-1)[-1] = float("nan")
    y, _ = selective_scan.chunk(**inputs)
    assert y.isnan().any()
    for form, name in itertools.product(DELTAS, ("k", "v")):
        deltas = delta_inputs(1, 12, 1, 5, 3, form)
        deltas[name][0, 7, 0, 1] = float("nan")
        o, _ = delta_of(form)(**deltas)
        assert o[0, 7:].isnan().any(-1).all() and not o[0, :7].isnan().any()
    x = torch.randn(1, 21, 20)
    x[0, 14, 7] = float("nan")
    y = causal_conv1d(x, torch.randn(20, 4), activation="silu")[0].isnan()
    assert y[0, 14:18, 7].all() and y.sum() == 4


@needs_kernels
@pytest.mark.parametrize("place", ["x", "dt", "z"])
def test_what_is_not_a_number_stays_visible_through_gates_and_step_sizes(place: str) -> None:
    inputs = scan_inputs(1, 12, 20, 3)
    inputs["z"] = torch.randn(1, 12, 20)
    inputs[place][0, 7, 3] = float("nan")
    y = selective_scan.chunk(**inputs, dt_softplus=True)[0].isnan()
    assert y[0, 7, 3] and not y[0, :7].any() and not y[0, :, :3].any()


@needs_kernels
def test_later_tokens_of_the_gated_scan_do_not_move_earlier_ones() -> None:
    inputs = scan_inputs(1, 40, 20, 3)
    inputs["z"] = torch.randn(1, 40, 20)
    expected, _ = selective_scan.chunk(**inputs, dt_softplus=True)
    for name in ("x", "dt", "B", "C", "z"):
        changed = inputs[name].clone()
        changed[:, 21:] *= 0.5
        found, _ = selective_scan.chunk(**{**inputs, name: changed}, dt_softplus=True)
        assert torch.equal(found[:, :21], expected[:, :21]) and not torch.equal(found, expected), name


@needs_kernels
@pytest.mark.parametrize("sizes", CONVS)
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("documents", [False, True])
def test_the_convolution_is_that_of_torch(
    sizes: tuple[int, int, int, int], activation: str | None, documents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, length, channels, width = sizes
    torch.manual_seed(length)
    inputs = {"x": torch.randn(batch, length, channels), "weight": torch.randn(channels, width)}
    if documents:
        inputs["bias"] = torch.randn(channels)
    segments = torch.arange(length).div(5, rounding_mode="floor").expand(batch, -1) if documents else None
    found = run(causal_conv1d, inputs, activation=activation, segment_ids=segments)
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    for x, y in zip(found, run(causal_conv1d, inputs, activation=activation, segment_ids=segments), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5 * float(y.abs().max()) if y.numel() else 0)


@needs_kernels
def test_the_convolution_sums_halves_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(2, 33, 131).bfloat16(), "weight": torch.randn(131, 4)}
    assert_same(causal_conv1d, inputs, monkeypatch, activation="silu")


@needs_kernels
@pytest.mark.parametrize("sizes", HEADS)
@pytest.mark.parametrize("form", ["vector", "bonus", "bonus over one decay a head"])
@pytest.mark.parametrize("documents", [False, True])
def test_decaying_attention_is_that_of_torch(
    sizes: tuple[int, ...], form: str, documents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = head_inputs(*sizes, form)
    segments = torch.arange(sizes[1]).div(9, rounding_mode="floor").expand(sizes[0], -1) if documents else None
    assert_same(linear_attention.chunk, inputs, monkeypatch, segment_ids=segments)


@needs_kernels
@pytest.mark.parametrize("sizes", HEADS)
@pytest.mark.parametrize("form", DELTAS)
@pytest.mark.parametrize("documents", [False, True])
def test_the_delta_rule_is_that_of_torch(
    sizes: tuple[int, ...], form: str, documents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = torch.arange(sizes[1]).div(9, rounding_mode="floor").expand(sizes[0], -1) if documents else None
    assert_same(delta_of(form), delta_inputs(*sizes, form), monkeypatch, segment_ids=segments)


@needs_kernels
@pytest.mark.parametrize("form", DELTAS)
def test_the_delta_rule_holds_decays_that_vanish_and_half_precision(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = delta_inputs(2, 70, 2, 16, 16, form)
    for name in {"g", "w"} & set(inputs):
        inputs[name] = torch.where(torch.rand(inputs[name].shape) < 0.3, -200.0, inputs[name])
    inputs |= {name: inputs[name].bfloat16() for name in ("q", "r", "k", "v") if name in inputs}
    assert_same(delta_of(form), inputs, monkeypatch)


@needs_kernels
@pytest.mark.parametrize("form", DELTAS)
def test_later_tokens_of_the_delta_rule_do_not_move_earlier_ones(form: str) -> None:
    inputs = delta_inputs(1, 40, 2, 16, 24, form)
    expected, _ = delta_of(form)(**inputs)
    for name in set(inputs) - {"initial_state"}:
        changed = inputs[name].clone()
        changed[:, 21:] *= 0.5
        found, _ = delta_of(form)(**{**inputs, name: changed})
        assert torch.equal(found[:, :21], expected[:, :21]) and not torch.equal(found, expected), name


@needs_kernels
@pytest.mark.parametrize("form", DELTAS)
def test_a_token_of_zeros_keeps_the_state_to_the_bit(form: str) -> None:
    inputs = delta_inputs(2, 11, 3, 20, 13, form)
    for name in {"k", "v", "beta", "g", "w", "a", "b"} & set(inputs):
        inputs[name] = torch.zeros_like(inputs[name])
    _, state = delta_of(form)(**inputs, output_final_state=True)
    assert torch.equal(state, inputs["initial_state"])


@needs_kernels
@pytest.mark.parametrize("sizes", HEADS)
@pytest.mark.parametrize("documents", [False, True])
def test_slots_are_those_of_torch(sizes: tuple[int, ...], documents: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = torch.arange(sizes[1]).div(9, rounding_mode="floor").expand(sizes[0], -1) if documents else None
    assert_same(slots, slot_inputs(*sizes), monkeypatch, segment_ids=segments)


@needs_kernels
def test_slots_hold_decays_that_vanish_and_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = slot_inputs(2, 70, 2, 16, 16)
    inputs["f"] = torch.where(torch.rand(inputs["f"].shape) < 0.3, -60.0, inputs["f"])
    inputs |= {name: inputs[name].bfloat16() for name in ("q", "k", "v")}
    assert_same(slots, inputs, monkeypatch)


@needs_kernels
@pytest.mark.parametrize("form", ["vector", "bonus"])
def test_decaying_attention_holds_decays_that_vanish_and_half_precision(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = head_inputs(2, 70, 2, 16, 16, form)
    inputs["g"] = torch.where(torch.rand(inputs["g"].shape) < 0.3, -60.0, inputs["g"])
    inputs |= {name: inputs[name].bfloat16() for name in ("q", "k", "v")}
    assert_same(linear_attention.chunk, inputs, monkeypatch)


@needs_kernels
def test_states_larger_than_was_measured_are_products_of_matrices() -> None:
    def native_at(keys: int, values: int, form: str = "vector") -> bool:
        return linear_attention.declaration(**head_inputs(1, 8, 1, keys, values, form)).is_native()

    assert native_at(256, 512) and not native_at(256, 520)
    assert not native_at(16, 16, "a decay a head")


@needs_kernels
@pytest.mark.parametrize("operator", ["linear attention", "delta rule"])
def test_large_states_are_as_in_torch(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    shape = (1, 41, 1)
    q, k = (normalize(torch.randn(*shape, 256), dim=-1).requires_grad_() for _ in range(2))
    v, g = torch.randn(*shape, 512).requires_grad_(), (-torch.rand(*shape, 256)).requires_grad_()
    beta = torch.rand(shape).requires_grad_()
    found = []
    for backend in ("auto", "torch"):
        monkeypatch.setenv("HF_ARCH_BACKEND", backend)
        if operator == "delta rule":
            outputs, inputs = delta_rule(q, k, v, beta, g[..., 0]), [q, k, v, beta, g]
        else:
            outputs, inputs = linear_attention(q, k, v, g=g), [q, k, v, g]
        y = outputs[0]
        found.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("given", ["weight", "bias", "x"])
def test_gradients_are_made_for_what_wants_one(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tensors = {"x": torch.randn(1, 9, 20), "weight": torch.randn(20, 4), "bias": torch.randn(20)}
    tensors[given].requires_grad_()
    causal_conv1d(**tensors)[0].sum().backward()
    found = tensors[given].grad
    tensors[given].grad = None
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    causal_conv1d(**tensors)[0].sum().backward()
    torch.testing.assert_close(found, tensors[given].grad)


@needs_kernels
def test_threads_do_not_move_a_bit() -> None:
    before, found = torch.get_num_threads(), []
    scan, heads = scan_inputs(3, 40, 257, 4), head_inputs(3, 40, 3, 16, 24, "vector")
    gated = {**scan, "z": torch.randn(3, 40, 257)}
    conv, slot = {"x": torch.randn(2, 33, 300), "weight": torch.randn(300, 4)}, slot_inputs(3, 40, 3, 16, 24, 16)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results = run(selective_scan.chunk, scan), run(linear_attention.chunk, heads), run(slots, slot)
            results += (run(partial(selective_scan.chunk, dt_softplus=True), gated),)
            results += tuple(run(delta_of(form), delta_inputs(3, 40, 3, 16, 24, form)) for form in DELTAS)
            found.append([*itertools.chain(*results), *run(causal_conv1d, conv, activation="silu")])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


@needs_kernels
def test_whoever_looks_at_single_operations_sees_those_of_torch() -> None:
    x, weight = torch.randn(1, 9, 20), torch.randn(20, 4)
    expected = causal_conv1d(x, weight, activation="silu")[0]
    traced = torch.jit.trace(lambda x: causal_conv1d(x, weight, activation="silu")[0], x)
    torch.testing.assert_close(traced(2 * x), causal_conv1d(2 * x, weight, activation="silu")[0])
    with FlopCounterMode(display=False):
        torch.testing.assert_close(causal_conv1d(x, weight, activation="silu")[0], expected)
    assert rotary.KERNELS.for_tensors(x) is not None
    with FlopCounterMode(display=False):
        assert rotary.KERNELS.for_tensors(x) is None


@pytest.mark.parametrize("other", [torch.randn(3).double(), torch.empty(3, device="meta")])
def test_other_tensors_have_no_kernel(other: Tensor) -> None:
    assert rotary.KERNELS.for_tensors(torch.randn(3), None, other) is None


def test_views_that_are_not_contiguous_are_no_argument() -> None:
    with pytest.raises(ValueError, match=r"strides \(1, 3\) of a tensor \(3, 2\) are not allowed"):
        native.Pointer(torch.randn(2, 3).t())
