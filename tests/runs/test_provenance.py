"""What is recorded of where a result comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_arch.core.plugins import load_plugin
from hf_arch.runs.provenance import plugin_variables, provenance


def test_variables_that_move_numbers_are_recorded_where_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit compares them (`check_code`)."""
    for name in ("HF_ARCH_BACKEND", "HF_ARCH_CPU_FSDP", "HF_ARCH_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    assert provenance(torch.device("cpu"))["environment"] == {}
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    monkeypatch.setenv("HF_ARCH_CACHE", "/tmp/elsewhere")
    assert provenance(torch.device("cpu"))["environment"] == {"HF_ARCH_BACKEND": "torch"}


def test_variables_that_a_plugin_names_are_recorded_and_secrets_are_not(tmp_path: Path) -> None:
    file = tmp_path / "reads.py"
    file.write_text(
        'NAMES = ("MY_SCALE", "HF_TOKEN", "MY_API_KEY", "HOME", "HF_HOME", "AWS_SECRET_ACCESS", "no", "A1")\n'
    )
    assert plugin_variables([load_plugin(file)]) == ["MY_SCALE"]
