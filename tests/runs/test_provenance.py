"""What is recorded of where a result comes from."""

from __future__ import annotations

import pytest
import torch

from hf_arch.runs.provenance import provenance


def test_variables_that_move_numbers_are_recorded_where_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit compares them (`check_code`)."""
    for name in ("HF_ARCH_BACKEND", "HF_ARCH_CPU_FSDP", "HF_ARCH_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    assert provenance(torch.device("cpu"))["environment"] == {}
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    monkeypatch.setenv("HF_ARCH_CACHE", "/tmp/elsewhere")
    assert provenance(torch.device("cpu"))["environment"] == {"HF_ARCH_BACKEND": "torch"}
