"""The choice of kernels: by the device of the tensors at each call, and HF_ARCH_BACKEND."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from hf_arch.core.errors import ConfigError
from hf_arch.ops import backend
from hf_arch.ops.documents import find_documents
from hf_arch.ops.linear_attention import linear_attention


def on(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor that claims to be on a device that may not exist."""
    with FakeTensorMode():
        return torch.empty(*shape, device=device, dtype=dtype)


def test_the_tensors_device_decides(monkeypatch) -> None:
    monkeypatch.delenv("HF_ARCH_BACKEND", raising=False)
    monkeypatch.setattr(backend, "_installed", lambda: True)
    assert backend.use_fla(on("cuda", 2, 3, 4))
    assert not backend.use_fla(on("cpu", 2, 3, 4))
    assert not backend.use_fla(on("cuda", 2, 1, 4)), "one token is a step"
    assert not backend.use_fla(on("cuda", 2, 3, 4, dtype=torch.float64)), "the kernels have no fp64"
    monkeypatch.setattr(backend, "_installed", lambda: False)
    assert not backend.use_fla(on("cuda", 2, 3, 4))


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
