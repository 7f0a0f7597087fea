"""Switches Triton's interpreter on before a test of this folder can import the kernels."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


@pytest.fixture(scope="session", autouse=True)
def interpreted_kernels() -> None:
    if find_spec("triton") is not None and find_spec("fla") is not None:
        from tests.fla_interpreter import interpreter  # noqa: F401
