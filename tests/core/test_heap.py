"""Memory that a training process frees stays with it, unless the user has set the allocator."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SET_BY_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
BLOCK = 64 * 2**20  # more than glibc ever takes from its heap unless it is told to
CODE = f"""
import ctypes, resource, sys
from hf_arch.core.heap import keep_memory
if sys.argv[1] == "keep":
    print(int(keep_memory()))
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
def use():
    block = ctypes.c_void_p(library.malloc(ctypes.c_size_t({BLOCK})))
    ctypes.memset(block, 1, {BLOCK})
    library.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def printed(how: str, **environment: str) -> list[int]:
    """Whether the allocator was set, where `how` is "keep"; the page faults of four blocks after a first."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    env = {**plain, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-c", CODE, how], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    return [int(line) for line in done.stdout.split()]


@glibc
def test_a_block_that_was_freed_serves_the_next_one() -> None:
    (without,) = printed("as it is")
    kept, faults = printed("keep")
    assert kept == 1
    assert without > 100
    assert faults < without / 20


@pytest.mark.parametrize(
    ("name", "value"), [*((name, "33554432") for name in SET_BY_USER), ("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")]
)
def test_what_the_user_sets_wins(name: str, value: str) -> None:
    assert printed("keep", **{name: value})[0] == 0


@glibc
def test_tunables_of_other_things_leave_it() -> None:
    assert printed("keep", GLIBC_TUNABLES="glibc.elision.enable=0")[0] == 1


@pytest.mark.parametrize("platform_name", ["darwin", "win32"])
def test_other_systems_are_left_alone(platform_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_arch.core.heap import keep_memory

    monkeypatch.setattr(sys, "platform", platform_name)
    assert not keep_memory()
