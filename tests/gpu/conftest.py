"""The device of these tests, and a record of every measured error, one JSON line a test, written as tests end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from hf_arch.ops import backend as dispatch
from tests.gpu.errors import FLOOR, require_close
from tools.gpu_timing import limit_autotuning


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu")
    group.addoption("--gpu-device", default="cuda", help="where to run; `cpu` runs the same tests without kernels")
    group.addoption("--gpu-record", default=None, metavar="FILE", help="append one JSON line a test to this file")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    chosen = torch.device(request.config.getoption("--gpu-device", "cuda"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return chosen


@pytest.fixture
def backend(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> str:
    """`torch`: plain torch on the device; `fla`: flash-linear-attention's kernels wherever the dispatch takes them."""
    if request.param == "torch":
        monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    elif device.type != "cuda" or not dispatch._installed():
        pytest.skip("needs a GPU, triton and flash-linear-attention")
    else:
        monkeypatch.delenv("HF_ARCH_BACKEND", raising=False)
    return request.param


@pytest.fixture(scope="session", autouse=True)
def one_configuration_a_kernel() -> None:
    """Triton's autotuners take the first configuration: all are to give the same, and each costs seconds to compile."""
    if not torch.cuda.is_available() or not dispatch._installed():
        return
    limit_autotuning(1)


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`measured(name, actual, expected, tolerance)`: notes the error, and fails where it is above the tolerance."""

    def check(name: str, actual: Any, expected: Any, tolerance: float, floor: float = FLOOR) -> None:
        request.node.user_properties.append((name, require_close(name, actual, expected, tolerance, floor)))

    return check


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    path = item.config.getoption("--gpu-record", None)
    if path and "gpu" in item.keywords and (report.when == "call" or not report.passed):
        row = {
            "test": item.nodeid.partition("tests/gpu/")[2],
            "outcome": report.outcome if report.when == "call" or report.skipped else "error",
            "seconds": round(report.duration, 2),
            "errors": dict(item.user_properties),
            "message": "" if report.passed else _message(report),
            "at": time.strftime("%H:%M:%S"),
        }
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")
    return report


def _message(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    return str(report.longrepr)[-3000:]
