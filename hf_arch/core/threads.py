"""Threads of a process that trains: how many, and how they wait for each other. Set before torch is imported.

libgomp, the OpenMP library of torch on Linux, reads its variables once, when it is loaded, and lets threads that wait
spin for milliseconds. On an idle machine that saves a wake-up. Beside other work each waiting thread keeps a core from
the one that it waits for: two threads then train at an eighth of the speed of one (`tools/thread_settings.py`,
docs/performance.md). So where the machine is busy, waiting threads sleep at once, and where it is idle they spin for a
thousand rounds instead of 300,000. Whatever the user sets wins. The number of threads never depends on the load, since
it may move the last digits of a sum.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

from hf_arch import environment

WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPIN_COUNT = 1000
BUSY_SHARE = 0.1
"""A machine is busy where other work takes more than this share of the cores, or where as many wait for one."""
LOOK_SECONDS = 0.05


def prepare_threads() -> None:
    """Sets how threads wait, and how many there are where a container allows fewer than there are cores. For this
    process and its children; without effect where torch is loaded already, or the user has said it."""
    if "torch" in sys.modules:
        return
    allowed = usable_cores()
    if allowed < (os.cpu_count() or 1):
        environment.set_variable("OMP_NUM_THREADS", str(allowed))
    if not any(environment.read(name) for name in WAIT_VARIABLES):
        if is_busy():
            environment.set_variable("OMP_WAIT_POLICY", "PASSIVE")
        else:
            environment.set_variable("GOMP_SPINCOUNT", str(SPIN_COUNT))


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity, or what its control group grants of their time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = _granted()
    return cores if granted is None else max(1, min(cores, math.ceil(granted)))


def is_busy(load: float | None = None) -> bool:
    """Whether other processes compute now, by the time that the machine's cores were not idle while this one slept;
    where the system does not tell, by the load of the last minute."""
    before = _busy_and_all()
    if before is None:
        load = os.getloadavg()[0] if load is None and hasattr(os, "getloadavg") else load or 0.0
        return load > BUSY_SHARE * (os.cpu_count() or 1)
    time.sleep(LOOK_SECONDS)
    after = _busy_and_all()
    assert after is not None
    spent = after[1] - before[1]
    return spent > 0 and (after[0] - before[0]) / spent > BUSY_SHARE


def _busy_and_all(file: Path = Path("/proc/stat")) -> tuple[int, int] | None:
    """Ticks that all cores together were not idle, and all their ticks."""
    try:
        ticks = [int(number) for number in file.read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _granted(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores' worth of time that the control group of this process is granted; None where it is not limited."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return None
    try:
        return float(quota) / float(period) if float(quota) > 0 else None
    except ValueError:  # "max"
        return None
