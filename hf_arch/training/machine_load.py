"""What else the machine was doing while a run trained: a speed is one of the model only on an idle machine."""

from __future__ import annotations

import os
import time
from typing import Any

import torch


class MachineLoad:
    """Read when it is made and again by `facts`; both before and after what is timed."""

    def __init__(self) -> None:
        self._load, self._wall, self._processor = _load(), time.monotonic(), time.process_time()

    def facts(self) -> dict[str, Any]:
        """cores: of the machine. start, end: processes that ran or waited to, mean of the last minute (None where the
        system does not say). processor_share: processor time of this process over wall time and threads."""
        wall, threads = time.monotonic() - self._wall, torch.get_num_threads()
        return {
            "cores": os.cpu_count(),
            "threads": threads,
            "start": self._load,
            "end": _load(),
            "processor_share": round((time.process_time() - self._processor) / max(wall * threads, 1e-9), 4),
        }


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):  # not every system counts it
        return None
