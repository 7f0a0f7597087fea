"""The choice of kernels: by the device of the tensors at each call, and HF_ARCH_BACKEND."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch._subclasses import FakeTensorMode

from hf_arch.core.errors import ConfigError
from hf_arch.ops import backend, recurrence
from hf_arch.ops.delta_rule import delta_rule
from hf_arch.ops.documents import find_documents
from hf_arch.ops.linear_attention import linear_attention
from hf_arch.ops.ssd import ssd

linear_module, delta_module, ssd_module = (
    importlib.import_module(f"hf_arch.ops.{name}") for name in ("linear_attention", "delta_rule", "ssd")
)


def on(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor that claims to be on a device that may not exist."""
    with FakeTensorMode():
        return torch.empty(*shape, device=device, dtype=dtype)


def test_the_tensors_device_decides(monkeypatch) -> None:
    monkeypatch.delenv("HF_ARCH_BACKEND", raising=False)
    monkeypatch.setattr(backend, "_installed", lambda: True)
    half = torch.bfloat16
    assert backend.use_fla(on("cuda", 2, 3, 4, dtype=half))
    assert not backend.use_fla(on("cpu", 2, 3, 4, dtype=half))
    assert not backend.use_fla(on("cuda", 2, 1, 4, dtype=half)), "one token is a step"
    assert not backend.use_fla(on("cuda", 2, 3, 4, dtype=torch.float64)), "the kernels have no fp64"
    monkeypatch.setattr(backend, "_installed", lambda: False)
    assert not backend.use_fla(on("cuda", 2, 3, 4, dtype=half))


def test_fp32_goes_to_kernels_that_round_it_only_where_torch_may_round_it(monkeypatch) -> None:
    """They compute products of fp32 in TF32: errors of 1e-3 where 1e-6 was asked for, without a word."""
    monkeypatch.delenv("HF_ARCH_BACKEND", raising=False)
    monkeypatch.setattr(backend, "_installed", lambda: True)
    x, matmul = on("cuda", 2, 3, 4), torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        for allowed in (False, True):
            matmul.allow_tf32 = allowed
            assert backend.use_fla(x) == allowed
            assert backend.use_fla(x, rounds_fp32=False), "an elementwise kernel is exact"
    finally:
        matmul.allow_tf32 = before


@pytest.mark.parametrize(
    ("sides", "covered"), [((4, 5), False), ((16, 32), True), ((64, 60), False), ((512, 64), False)]
)
def test_heads_that_tensor_cores_cannot_take_are_not_covered(sides: tuple[int, int], covered: bool) -> None:
    q, v = (torch.zeros(1, 3, 2, side) for side in sides)
    for op, arguments in ((linear_attention, (q, q, v)), (delta_rule, (q, q, v, torch.zeros(1, 3, 2)))):
        assert op.declaration(*arguments).covers() == covered


@pytest.mark.parametrize("grad", [False, True])
def test_a_gradient_that_the_kernel_refuses_is_taken_from_another(monkeypatch, grad: bool) -> None:
    """One decay a head on Hopper GPUs under Triton 3.4 to 3.7.0: the kernels with one a channel give the same."""
    called = []
    q, decay = torch.randn(2, 3, 2, 16, requires_grad=grad), -torch.rand(2, 3, 2)

    def run(name, arrays, *rest, **options):
        called.append((name, arrays["g"].shape))
        return torch.zeros_like(arrays["v"]), None

    monkeypatch.setattr(recurrence, "run_fla", run)
    for module in (linear_module, delta_module, ssd_module):
        monkeypatch.setattr(module, "refuses_gated_gradients", lambda: True)
    linear_attention.kernel(q, q, q, decay)
    delta_rule.kernel(q, q, q, torch.rand(2, 3, 2), decay)
    ssd.kernel(q, decay.neg(), torch.tensor([-1.0, -2.0]), q[:, :, :1], q[:, :, :1])
    names = ["gla.chunk_gla", "kda.chunk_kda", "gla.chunk_gla"]
    plain = ["simple_gla.chunk_simple_gla", "gated_delta_rule.chunk_gated_delta_rule", "simple_gla.chunk_simple_gla"]
    assert called == [(name, q.shape if grad else decay.shape) for name in (names if grad else plain)]


def test_torch_can_be_forced(monkeypatch) -> None:
    monkeypatch.setattr(backend, "_installed", lambda: True)
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    assert not backend.use_fla(on("cuda", 2, 3, 4))


def test_an_unknown_backend_is_an_error(monkeypatch) -> None:
    monkeypatch.setenv("HF_ARCH_BACKEND", "trition")
    x = torch.zeros(1, 2, 1, 4)
    with pytest.raises(ConfigError, match=r"HF_ARCH_BACKEND: 'trition' is not known.*allowed: auto, torch"):
        linear_attention(x, x, x)


def test_documents_of_all_rows_end_to_end() -> None:
    documents = find_documents(torch.tensor([[0, 0, 1, 1], [7, 7, 7, 7], [2, 3, 3, 2]]))
    assert documents.borders.tolist() == [0, 2, 4, 8, 9, 11, 12]
    assert documents.first.tolist() == [0, 2, 3] and documents.last.tolist() == [1, 2, 5]
