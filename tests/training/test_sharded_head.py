"""A sharded head is gathered when it is called, so the chunked loss must call it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.distributed
def test_the_chunked_loss_calls_a_sharded_head():
    script = Path(__file__).with_name("sharded_head.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
