"""Which conformance tests a marker expression selects; what is slow or starts processes carries those marks too."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

os.environ.setdefault("TRANSFORMERS_TEST_DEVICE", "cpu")

collect_ignore = ["transformers_tests"]

DISTRIBUTED = re.compile(r"test_(fsdp2|hsdp|tp_(forward|backward|generation)|ep_)")
SLOW = re.compile(r"compile|test_bc_torch_dtype|test_training_overfit|test_flex_attention")


UPSTREAM_MARKS = [
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "is_expert_parallel_test",
    "is_fsdp_test",
    "is_tensor_parallel_test",
    "is_training_test",
    "torch_compile_test",
]


def pytest_configure(config: pytest.Config) -> None:
    for mark in UPSTREAM_MARKS:
        config.addinivalue_line("markers", f"{mark}: set by transformers' test mixins")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Importing the mixins downloads them: only where the suite is asked for."""
    expression = config.option.markexpr.replace("not conformance", "")
    if collection_path.name == "test_conformance.py" and expression and "conformance" not in expression:
        return True
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent != Path(__file__).parent:
            continue
        item.add_marker("conformance")
        if DISTRIBUTED.match(item.name):
            item.add_marker("distributed")
        if SLOW.search(item.name):
            item.add_marker("slow")
