"""Where downloaded and prepared data lives, and how files get there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_arch.environment import cache_folder


def data_cache(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The cache folder: `cache_dir`, else the environment's `HF_ARCH_CACHE`, else `~/.cache/hf_arch`."""
    return user_path(cache_dir).resolve() if cache_dir else cache_folder()


def user_path(name: str | os.PathLike[str]) -> Path:
    """A path as the user wrote it, with `~` replaced; an unknown `~name` stays (Path.expanduser raises there)."""
    return Path(os.path.expanduser(name))


@contextmanager
def locked(cache: Path, name: str) -> Iterator[None]:
    """Holds the lock `name` of this cache, so that of several processes one prepares and the others find it ready."""
    from filelock import FileLock

    folder = cache / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        yield


def publish_folder(finished: Path, target: Path) -> None:
    """Moves a finished folder to its place in one step; where another process was first, ours is dropped."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(finished, target)
    except OSError:
        if not any(target.glob("*")):
            raise
        shutil.rmtree(finished, ignore_errors=True)


def hash_text(*parts: object) -> str:
    """Hex sha256 over the parts, each ended by a zero byte so that their borders count."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(str(part).encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
