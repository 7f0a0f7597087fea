"""Peak memory of a run: of tensors on a GPU; on a CPU what the process grew by.

What Python and its libraries take in every run is left out: it would hide the difference between models. So are
pages of files (code of the libraries, mapped data), of which a forked process has none at first and the system takes
back what it likes.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from hf_arch.core.heap import give_back

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Counts from its creation, before the model is built: `peak.read()` bytes since then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.start = 0
            return
        give_back()  # a model would grow into it unseen
        try:
            _RESET.write_text("5")  # forgets the peak of earlier work, data preparation, where the system allows it
        except OSError:
            taken = _process_peak()
        else:
            taken = _status_bytes("VmRSS") or _process_peak()
        self.start = taken - _file_pages()

    def read(self) -> int:
        """Peak bytes since creation."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return max(0, _process_peak() - _file_pages() - self.start)


def _process_peak() -> int:
    """Peak resident bytes of this process."""
    if (peak := _status_bytes("VmHWM")) is not None:
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _file_pages() -> int:
    """Resident bytes of this process that are pages of files; 0 where the system does not tell."""
    return _status_bytes("RssFile") or 0


def _status_bytes(key: str) -> int | None:
    """A size in Linux's account of this process; None on other systems."""
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None
