"""A model that transformers splits over processes computes what the whole one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.distributed
def test_a_split_model_computes_what_the_whole_one_does(tmp_path: Path) -> None:
    script = Path(__file__).with_name("split_models.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
