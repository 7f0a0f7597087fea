"""What `hf-arch data prepare --dry-run` shows."""

from __future__ import annotations

import json

from hf_arch.core.formats import NOTHING, byte_size, duration, quantity
from hf_arch.data import DataOptions
from hf_arch.data.forecast import forecast_data


def preview_data(options: DataOptions, out: str | None, shards: int | None, workers: int, as_json: bool) -> int:
    """Prints what preparing the corpus would take; the exit code. Raises `ConfigError` as the preparation does."""
    found = forecast_data(options, out, shards=shards, workers=workers)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
        return 0
    for line in found.warnings:
        print(line)
    if found.ready:
        print(f"{found.folder}: nothing to do")
        return 0
    print(f"to write: {found.folder or 'shards, once the text is here'}")
    print(f"text: {byte_size(found.text_bytes)}, {quantity(found.tokens)} tokens")
    print(f"time on this device (cpu, {workers} processes): {duration(found.seconds)}, {found.basis}")
    print(f"memory: {byte_size(found.memory_bytes)}; disk: {byte_size(found.disk_bytes)}; {NOTHING}")
    return 0
