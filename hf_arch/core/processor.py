"""What the system says of its processor, where it says it: on Linux."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def processor_lines() -> tuple[tuple[str, str], ...]:
    """Names and values of `/proc/cpuinfo`, of all processors one after another; none where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    return tuple((name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines))


def processor_says(name: str) -> str | None:
    """The first value of that name, such as `model name` or `vendor_id`."""
    return next((value for key, value in processor_lines() if key == name), None)
