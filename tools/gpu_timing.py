"""Timing on any device, and sections that end in time whatever happens in them.

A section is a generator of rows (plain dicts). What it has given when its time is over, or when it raises, is kept.
"""

from __future__ import annotations

import gc
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from hf_arch.environment import temporarily

Row = dict[str, Any]


class OutOfTime(BaseException):
    """The time of a section is over; no `except Exception` in a library may keep it."""


@dataclass(frozen=True)
class Bench:
    """Where sections run. small: sizes that take a CPU a second, to test the sections themselves."""

    device: torch.device
    small: bool

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def milliseconds(self, action: Callable[[], Any], seconds: float = 0.25, most: int = 20) -> float:
        """Median time of a call after two that warm up, within about `seconds`; of device events on a GPU."""
        once = 0.0
        for _ in range(2):
            self.synchronize()
            start = time.perf_counter()
            action()
            self.synchronize()
            once = time.perf_counter() - start
        if once > 10 * seconds:
            return 1e3 * once
        count = 1 if self.small else max(3, min(most, int(seconds / max(once, 1e-6))))
        if not self.is_gpu:
            return 1e3 * statistics.median(_host_seconds(action) for _ in range(count))
        times = []
        for _ in range(count):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            action()
            last.record()
            torch.cuda.synchronize(self.device)
            times.append(first.elapsed_time(last))
        return statistics.median(times)

    def peak_memory(self, action: Callable[[], Any]) -> int | None:
        """Bytes of the device's allocator at the peak of a call above what it held before; None on a CPU."""
        if not self.is_gpu:
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        action()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def free(self) -> None:
        """Give back what ended models and failed attempts held."""
        if self.is_gpu:
            gc.collect()
            torch.cuda.empty_cache()


def _host_seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def attempt(row: Row, measure: Callable[[], Row], bench: Bench) -> Row:
    """`row` with what `measure` gives, or with the one line of its error under "error"."""
    try:
        return {**row, **measure()}
    except Exception as error:  # whatever a kernel, a compiler or the allocator raises: the next row is measured still
        return {**row, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    finally:
        bench.free()


def run_section(
    section: Callable[[Bench], Iterator[Row]],
    bench: Bench,
    seconds: float,
    note: Callable[[Row], None] = lambda row: None,
) -> Row:
    """{"status": "ok" | "failed" | "out of time", "seconds", "rows", "error"}; a row's error makes the section failed.

    Args:
        section: a generator of rows.
        bench: what it is given.
        seconds: after which it is ended (by SIGALRM: between two instructions of Python, so a kernel runs to its end).
        note: called with each row as it comes.
    """

    def end(signum: int, frame: Any) -> None:
        raise OutOfTime

    rows: list[Row] = []
    status, error, start = "ok", "", time.perf_counter()
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        for row in section(bench):
            rows.append(row)
            note(row)
    except OutOfTime:
        status, error = "out of time", f"ended after {seconds:.0f} s"
    except Exception as raised:
        status, error = "failed", "".join(traceback.format_exception(raised))[-2000:]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        _leave_autocast(bench.device)
        bench.free()
    failures = [row["error"] for row in rows if "error" in row]
    if status == "ok" and failures:
        status, error = "failed", f"{len(failures)} rows, first: {failures[0]}"
    return {"status": status, "seconds": round(time.perf_counter() - start, 1), "rows": rows, "error": error}


def _leave_autocast(device: torch.device) -> None:
    """Undo what an end between two instructions left: inside an `autocast` that nobody leaves, weights are cast once
    and every later step of training runs on those.
    """
    torch.set_autocast_enabled(device.type, False)
    torch.clear_autocast_cache()
    torch.autocast_increment_nesting()
    while torch.autocast_decrement_nesting() > 0:
        pass


def backend_of(name: str) -> AbstractContextManager[None]:
    """Recurrences by "torch" alone inside it, or also by the kernels of "fla"."""
    return temporarily({"HF_ARCH_BACKEND": "torch" if name == "torch" else "auto"}, replace=True)


def limit_autotuning(most: int) -> None:
    """From here on Triton's autotuners choose among at most so many of their configurations, evenly spread.

    Each costs seconds to compile, for every kernel and every number of heads. Call it before `fla` is imported.
    """
    from triton.runtime.autotuner import Autotuner

    tuned = Autotuner.__init__

    def fewer(self: Any, fn: Any, arg_names: Any, configs: Any, *args: Any, **kwargs: Any) -> None:
        configs = list(configs or [])
        tuned(self, fn, arg_names, configs[:: -(-len(configs) // most)] if configs else configs, *args, **kwargs)

    Autotuner.__init__ = fewer
