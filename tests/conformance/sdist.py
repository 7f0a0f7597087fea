"""transformers' own test mixins, from the source distribution of the version this package is written for.

The wheel does not carry `tests/`. The sdist is taken from the package index once, checked against a pinned sha256, and
its `tests/test_*.py` are unpacked below `HF_ARCH_CACHE` (default `~/.cache/hf_arch`), outside the repository.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from filelock import FileLock

VERSION = "5.23.0"
SHA256 = "19d647a4d5d903a7c644ca5cde2d86efc3dde7d8c687ae7988806ff2205efa71"
CACHE = Path(os.environ.get("HF_ARCH_CACHE", Path.home() / ".cache" / "hf_arch")) / "conformance"
MODULES = CACHE / f"transformers-{VERSION}-{SHA256[:8]}"


class SdistUnavailable(Exception):
    """The sdist could not be had; the message is the reason to skip."""


def ensure_modules() -> Path:
    """The folder of the unpacked test modules; downloads it where it is missing.

    Raises:
        SdistUnavailable: without a package index.
        ValueError: when what was downloaded is not the pinned file.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / ".lock"):
        if not MODULES.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                unpacked = _unpack(_download(Path(folder)), Path(folder) / "modules")
                unpacked.rename(MODULES)
    return MODULES


def _download(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run([*pip, f"transformers=={VERSION}"], capture_output=True, text=True, timeout=600)
    archive = folder / f"transformers-{VERSION}.tar.gz"
    if done.returncode != 0 or not archive.exists():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SdistUnavailable(f"the sdist transformers=={VERSION} cannot be downloaded: {last}")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(f"transformers=={VERSION}: the sdist has sha256 {digest}, expected {SHA256}")
    return archive


def _unpack(archive: Path, target: Path) -> Path:
    """Only the top level of `tests/`: the mixins. `__init__.py` is there because ConfigTester executes it."""
    target.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            parts = member.name.split("/")
            if (
                len(parts) == 3
                and parts[1] == "tests"
                and parts[2].endswith(".py")
                and (file := tar.extractfile(member))
            ):
                (target / parts[2]).write_bytes(file.read())
    (target / "__init__.py").touch()
    return target
