"""Scores item by item, one file for each run and task: what tests of two models on the same items read.

<run>/items/<task>/items.parquet     one row an item, in the task's order

Columns: `item` (a digest of prompt and answers: equal for two models asked the same), `right` (0 or 1), `nats` and
`bytes` of the gold answer, `bits_per_byte` of it, and `margin`: the log-likelihood of the gold answer less that of the
best wrong one, in nats (null where there are no choices).
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import write_atomic

if TYPE_CHECKING:
    import pandas as pd

ITEMS_DIR = "items"
ITEMS_FILE = "items.parquet"
COLUMNS = ("item", "right", "nats", "bytes", "bits_per_byte", "margin")


def items_file(run: Path, task: str) -> Path:
    """Where the items of a task lie in a run folder."""
    return run / ITEMS_DIR / item_name(task) / ITEMS_FILE


def item_name(task: str) -> str:
    """The name of a task's folder."""
    return re.sub(r"[^\w.-]", "_", task)


def write_items(run: Path, task: str, items: pd.DataFrame) -> Path:
    """Writes the items of a task, atomically."""
    buffer = io.BytesIO()
    items.to_parquet(buffer, index=False)
    return write_atomic(items_file(run, task), buffer.getvalue())


def drop_items(run: Path, task: str) -> None:
    """Removes the items of a task, whose score is no longer that of one model."""
    items_file(run, task).unlink(missing_ok=True)


def read_items(run: Path, task: str) -> pd.DataFrame | None:
    """The items of a task, or None where there are none. ConfigError for a file that is damaged."""
    import pandas as pd

    file = items_file(run, task)
    if not file.is_file():
        return None
    try:
        items = pd.read_parquet(file)
    except Exception as error:  # whatever pyarrow raises for a file that is none of its own
        raise ConfigError(f"{file}: cannot be read ({' '.join(str(error).split())[:120]})") from error
    missing = [column for column in COLUMNS if column not in items.columns]
    if missing:
        raise ConfigError(f"{file}: the column {missing[0]!r} is missing; evaluate the run again")
    return items


def item_tasks(run: Path) -> list[str]:
    """The tasks whose items a run folder holds."""
    return sorted(path.parent.name for path in (run / ITEMS_DIR).glob(f"*/{ITEMS_FILE}"))
