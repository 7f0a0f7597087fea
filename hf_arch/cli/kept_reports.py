"""The reports of `hf-arch info ARCH` on defaults, kept: a second look needs neither torch nor transformers.

A report follows from the sources of the package, the versions of both libraries and the length alone; all of them are
in the key. Overrides, files and plugins may depend on more, and are reported anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import hf_arch
from hf_arch import environment
from hf_arch.cli.names import declared_architectures
from hf_arch.core.files import write_json
from hf_arch.data.cache import data_cache

FOLDER = "reports"


def reports_on(target: str, overrides: Sequence[str], seq_len: int | None) -> list[dict[str, Any]]:
    """`model_reports`, from the cache where it has them. Raises `ConfigError` as that does."""
    plain = not overrides and not environment.read("HF_ARCH_PLUGINS") and not Path(target).exists()
    file = None
    if plain and any(row["name"] == target for row in declared_architectures()):
        file = data_cache() / FOLDER / f"{target}-{_key(seq_len)}.json"
        if (kept := _kept(file)) is not None:
            return kept
    from hf_arch.cli.listing import model_reports

    reports = model_reports(target, overrides, seq_len)
    if file is not None:
        with suppress(OSError):  # a cache that cannot be written to is none
            write_json(file, {"reports": reports})
    return reports


def _key(seq_len: int | None) -> str:
    digest = hashlib.sha256(f"{seq_len} {metadata.version('torch')} {metadata.version('transformers')}".encode())
    root = Path(hf_arch.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


def _kept(file: Path) -> list[dict[str, Any]] | None:
    try:
        reports = json.loads(file.read_text(encoding="utf-8"))["reports"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return reports if isinstance(reports, list) and reports else None
