"""Every recurrence on the GPU, in plain torch and by FLA's kernels, against its naive loop on the CPU in fp32."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hf_arch.ops import backend as dispatch
from tests.gpu.errors import on_device
from tests.ops import cases
from tests.ops.cases import CASES
from tests.ops.recurrences import leaves, random_segments, with_gradients

LENGTH = {"narrow": 70, "odd": 70, "wide": 200}
SIZES = {
    "narrow": {},
    "odd": {"K": 24, "V": 40, "M": 24, "D": 21},
    "wide": {"H": 4, "K": 64, "V": 64, "M": 32, "D": 48},
}
"""Of heads and channels: those of the tests of the CPU, sides that are no powers of two, and what models have."""
FP32, BF16, KERNELS_BF16 = 1e-4, 2e-2, 3e-2
"""The kernels round what lies between two of their products to bf16, plain torch keeps it in fp32."""
TF32 = 1e-2
ILL_CONDITIONED = {"delta, parallel keys": 6e-2}
"""Keys at a cosine of 0.99 and strengths near 1: the triangular system of a chunk amplifies what was rounded."""
LOST_IN_BF16 = {("mamba2", "shut"), ("mamba2", "mixed")}
"""At steps of 50 and more the gradient of A is as many times the rounding of that of a decay: only outputs count."""
KERNEL_FLOOR = 0.1
"""For gradients by kernels: that of a decay is a difference of sums of order one in bf16, also where a shut gate leaves
nothing of it."""
GATES = ("mild", "open", "shut", "mixed")

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]
CHECKS = [
    pytest.param(name, gates, width, documents, marks=pytest.mark.xdist_group(name))
    for name, case in CASES.items()
    for width in LENGTH
    for gates in (GATES if case.gated and width != "odd" else GATES[:1])
    for documents in ((False, True) if gates == "mild" else (False,))
]


class Sizes:
    """Replaces the sizes that `tests.ops.cases` draws its inputs with."""

    def __init__(self, width: str):
        self.values = SIZES[width]

    def __enter__(self) -> None:
        self.before = {name: getattr(cases, name) for name in self.values}
        vars(cases).update(self.values)

    def __exit__(self, *_: Any) -> None:
        vars(cases).update(self.before)


def drawn(name: str, gates: str, width: str, documents: bool) -> tuple[list, dict[str, Any]]:
    """Inputs and options of a call on the CPU, the initial state of a random sign and size one."""
    case, length = CASES[name], LENGTH[width]
    torch.manual_seed(0)
    with Sizes(width):
        inputs, single = (case.inputs(tokens, gates) for tokens in (length, 1))
    if name.startswith("s4d") and SIZES[width]:  # its step sizes are given for three channels
        for arguments in (inputs, single):
            arguments[1] = arguments[1].repeat(SIZES[width]["D"] // len(arguments[1]))
    _, final = case.naive(*single, output_final_state=True)
    state = tuple(torch.randn_like(part) for part in leaves(final))
    options: dict[str, Any] = {"initial_state": state[0] if len(state) == 1 else state}
    if documents:
        options["segment_ids"] = random_segments(inputs[0].shape[0], length)
    return inputs, options


@functools.lru_cache(maxsize=8)
def expected_results(name: str, gates: str, width: str, documents: bool) -> tuple:
    inputs, options = drawn(name, gates, width, documents)
    return with_gradients(CASES[name].naive, inputs, **options)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("name", "gates", "width", "documents"), CHECKS)
def test_plain_torch_equals_the_loop_on_the_cpu(
    name: str,
    gates: str,
    width: str,
    documents: bool,
    bf16: bool,
    device: torch.device,
    measured: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    outputs, gradients = called(name, gates, width, documents, device, torch.bfloat16 if bf16 else None)
    expected, expected_gradients = expected_results(name, gates, width, documents)
    measured("outputs", outputs, expected, BF16 if bf16 else FP32)
    measured("gradients", gradients, expected_gradients, BF16 if bf16 else FP32)


@pytest.mark.parametrize("backend", ["fla"], indirect=True)
@pytest.mark.parametrize(("name", "gates", "width", "documents"), CHECKS)
def test_kernels_equal_the_loop_on_the_cpu(
    name: str,
    gates: str,
    width: str,
    documents: bool,
    backend: str,
    device: torch.device,
    measured: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In bf16; where sizes or arguments have no kernel the call is the one above, and is skipped."""
    used = count_kernels(monkeypatch)
    outputs, gradients = called(name, gates, width, documents, device, torch.bfloat16)
    if not used:
        pytest.skip("no kernel for such a call")
    expected, expected_gradients = expected_results(name, gates, width, documents)
    tolerance = ILL_CONDITIONED.get(name, KERNELS_BF16)
    measured("outputs", outputs, expected, tolerance)
    if (name, gates) not in LOST_IN_BF16:
        measured("gradients", gradients, expected_gradients, tolerance, floor=KERNEL_FLOOR)


@pytest.mark.parametrize("backend", ["fla"], indirect=True)
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in CASES])
def test_kernels_take_fp32_only_where_tf32_is_allowed(
    name: str, backend: str, device: torch.device, measured: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = count_kernels(monkeypatch)
    expected, expected_gradients = expected_results(name, "mild", "wide", False)
    outputs, gradients = called(name, "mild", "wide", False, device, None)
    measured("outputs", outputs, expected, FP32)
    measured("gradients", gradients, expected_gradients, FP32)
    assert not used or name == "hgrn"  # elementwise, and so as exact as torch
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        outputs, gradients = called(name, "mild", "wide", False, device, None)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    measured("outputs in TF32", outputs, expected, TF32)
    measured("gradients in TF32", gradients, expected_gradients, TF32, floor=KERNEL_FLOOR)


def called(
    name: str, gates: str, width: str, documents: bool, device: torch.device, dtype: torch.dtype | None
) -> tuple[tuple, tuple]:
    """Outputs and gradients of the op on the device, data in `dtype`, decays in fp32."""
    inputs, options = drawn(name, gates, width, documents)
    settings = {key: on_device(x, device) for key, x in options.items()}
    return with_gradients(CASES[name].op, on_device(inputs, device, dtype), **settings)


def count_kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that recurrences call from here on."""
    used: list[str] = []
    find = dispatch._kernel
    monkeypatch.setattr(dispatch, "_kernel", lambda name: used.append(name) or find(name))
    return used
