"""Files that are whole or not there: the one atomic writer, and JSON that any parser can read."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from hf_arch.core.errors import ConfigError


def temporary_name(path: Path) -> Path:
    """A hidden name next to `path` that no other process uses (tempfile's would be closed to the user's group)."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file for writing that takes its name when the block ends well: readers see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Writes a whole file (text as UTF-8) atomically and returns its path."""
    path = Path(path)
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


def create_atomic(path: str | Path, content: str) -> bool:
    """Writes a whole file where there is none yet, and tells whether it did: of several writers one succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        temporary.write_text(content, encoding="utf-8")
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def write_json(path: str | Path, payload: Any) -> Path:
    """`payload` as indented strict JSON (NaN becomes null), atomically."""
    return write_atomic(path, json.dumps(to_jsonable(payload), indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. ConfigError naming the file where it is missing, torn, or not an object."""
    path = Path(path)
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(payload, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(payload).__name__}")
    return payload


def finite(value: object) -> float | None:
    """`value` as a float where it is a finite number, else None (also for booleans, NaN and infinities)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def to_jsonable(value: Any) -> Any:
    """`value` with paths as text and NaN or infinities as null, so that any JSON parser can read what is written."""
    if isinstance(value, dict):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value
