"""Precision and peak FLOP/s: what is chosen for which device, and that it is said why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_arch.core.errors import ConfigError
from hf_arch.training import peak_flops as peak_module
from hf_arch.training import precision_speed
from hf_arch.training.memory import PeakMemory
from hf_arch.training.peak_flops import measure_matmul_flops, peak_flops
from hf_arch.training.precision import choose_precision
from hf_arch.training.precision_speed import PrecisionSpeed

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A machine whose steps take as many ms as a test says; counts its measurements. The choice is left to it."""
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_ARCH_PRECISION")
    machine: dict[str, Any] = {"step_ms": {"fp32": 2.0, "bf16": 1.0}, "times": 0}

    def measure(name: str) -> PrecisionSpeed:
        machine["times"] += 1
        return PrecisionSpeed(name, {"fp32": 100.0, "bf16": 400.0}, machine["step_ms"])

    monkeypatch.setattr(precision_speed, "measure_precisions", measure)
    return machine


@pytest.mark.parametrize(("bf16", "expected"), [(1.0, "bf16"), (1.95, "fp32"), (3.0, "fp32")])
def test_a_cpu_takes_what_its_step_is_faster_in(measured: dict[str, Any], bf16: float, expected: str) -> None:
    """A gain within the noise is none, and products alone do not decide."""
    measured["step_ms"] = {"fp32": 2.0, "bf16": bf16}
    chosen = choose_precision("auto", CPU)
    assert chosen.name == expected
    assert f"{bf16:.1f} ms in bf16, 2.0 ms in fp32" in chosen.reason
    assert chosen.measured is not None and chosen.measured["product_gflops"] == {"fp32": 100.0, "bf16": 400.0}


def test_a_machine_is_measured_once_and_again_with_other_threads_or_a_damaged_file(
    measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = choose_precision("auto", CPU)
    measured["step_ms"] = {"fp32": 1.0, "bf16": 2.0}
    assert choose_precision("auto", CPU) == first and measured["times"] == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert choose_precision("auto", CPU).name == "fp32" and measured["times"] == 2
    monkeypatch.undo()
    for damaged in ("{", "[]", json.dumps({precision_speed.machine_key(): {"step_ms": {}}})):
        (tmp_path / "precision.json").write_text(damaged)
        with monkeypatch.context() as patch:
            patch.setenv("HF_ARCH_CACHE", str(tmp_path))
            patch.setattr(
                precision_speed, "measure_precisions", lambda name: PrecisionSpeed(name, {}, {"fp32": 1, "bf16": 9})
            )
            assert precision_speed.precision_speed().faster == "fp32"
    assert set(json.loads((tmp_path / "precision.json").read_text())) == {precision_speed.machine_key()}


@pytest.mark.rest
def test_the_measurement_is_of_this_machine_and_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    speed = precision_speed.measure_precisions("here", rounds=1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(speed.product_gflops[name] > 0 and speed.step_ms[name] > 0 for name in ("fp32", "bf16"))


def test_the_environment_replaces_the_measurement(measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ARCH_PRECISION", "fp32")
    assert choose_precision("auto", CPU).name == "fp32" and measured["times"] == 0
    assert choose_precision("bf16", CPU).name == "bf16"  # what the recipe asks for counts
    monkeypatch.setenv("HF_ARCH_PRECISION", "fp8")
    with pytest.raises(ConfigError, match="HF_ARCH_PRECISION: 'fp8'"):
        choose_precision("auto", CPU)


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_takes_bf16_where_it_has_it(monkeypatch: pytest.MonkeyPatch, supported: bool, expected: str) -> None:
    monkeypatch.delenv("HF_ARCH_PRECISION")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert choose_precision("auto", GPU).name == expected


def test_a_recipe_decides_where_it_can() -> None:
    assert choose_precision("bf16", CPU).dtype == torch.bfloat16
    assert choose_precision("fp32", GPU).name == "fp32"
    with pytest.raises(ConfigError, match="'fp16' needs a GPU"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.4),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756.5),
        ("NVIDIA H200", torch.bfloat16, 989.4),
        ("NVIDIA A100-SXM4-40GB", torch.bfloat16, 312.0),
        ("NVIDIA A100-SXM4-40GB", torch.float32, 19.5),
        ("NVIDIA L40S", torch.bfloat16, 362.1),
        ("NVIDIA L4", torch.bfloat16, 121.0),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, 165.2),
        ("NVIDIA RTX A1000", torch.bfloat16, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", torch.bfloat16, None),
    ],
)
def test_gpus_are_known_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, tera: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(GPU, dtype) == (None if tera is None else tera * 1e12)


def test_the_best_measurement_of_a_cpu_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A busy machine measures too low: neither that nor fewer threads may ever lower what was seen before."""
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path))
    measured = {"now": 2e9}
    monkeypatch.setattr(peak_module, "measure_matmul_flops", lambda dtype, **_: measured["now"])
    assert peak_flops(CPU, torch.float32) == 2e9
    measured["now"] = 1e9
    assert peak_flops(CPU, torch.float32) == 2e9
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert peak_flops(CPU, torch.float32) == 2e9
    measured["now"] = 3e9
    assert peak_flops(CPU, torch.float32) == 3e9


def test_a_matmul_has_a_speed() -> None:
    assert measure_matmul_flops(torch.float32, size=64, seconds=0.01) > 0


PEAK = """
import torch
from hf_arch.core.heap import keep_memory
from hf_arch.training.memory import PeakMemory
keep_memory()
prepared = torch.ones(64 << 20)
del prepared
peak = PeakMemory(torch.device("cpu"))
taken = torch.ones(32 << 20)
del taken
print(peak.read())
"""


def test_what_earlier_work_has_left_counts_again_where_it_is_used() -> None:
    """A process that trains keeps what data preparation has freed; the model was built in it, and its peak was 0."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) == pytest.approx(4 * (32 << 20), rel=0.1)


def test_peak_memory_is_what_was_taken_since() -> None:
    """The peak stays after the tensor is gone, and leaves out what was there before."""
    before = torch.ones(8 << 20)
    peak = PeakMemory(CPU)
    taken = torch.ones(32 << 20)
    size = taken.numel() * 4
    del taken
    assert peak.read() == pytest.approx(size, rel=0.1)
    del before
