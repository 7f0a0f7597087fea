"""`hf-arch eval --dry-run`: what would be scored, and what it takes."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from hf_arch.core.formats import NOTHING, byte_size, duration


def print_eval_preview(found: dict[str, Any]) -> None:
    """A line for each model and task, then what all of them take."""
    console = Console(highlight=False)
    for model in found["models"]:
        console.print(f"{model['model']}: {model['parameters']:,} parameters", markup=False, soft_wrap=True)
        for name, task in model["tasks"].items():
            rows = "rows not known" if task["rows"] is None else f"{task['rows']:,} rows"
            console.print(f"  {name}: {rows}, {duration(task['seconds'])}", markup=False, soft_wrap=True)
    for line in found["warnings"]:
        console.print(line, markup=False, soft_wrap=True)
    hours = "not known" if found["hours"] is None else f"{duration(found['hours'] * 3600)} = {found['hours']:.3g} h"
    console.print(f"time on this device ({found['device']}): {hours}, {found['basis']}", markup=False, soft_wrap=True)
    console.print(
        f"memory: {byte_size(found['memory_bytes'])}; disk: {byte_size(found['disk_bytes'])}; {NOTHING}", markup=False
    )
