"""Switches Triton's interpreter on before anything can import triton, where these tests were asked for."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("markexpr") == "fla_interpreter" and find_spec("triton") and find_spec("fla"):
        from tests.fla_interpreter import interpreter  # noqa: F401
