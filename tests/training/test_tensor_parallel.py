"""A model that transformers splits over processes by our plan computes what the whole one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.distributed
def test_a_model_split_by_its_plan_is_the_whole_one(tmp_path: Path) -> None:
    script = Path(__file__).with_name("tensor_parallel.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
