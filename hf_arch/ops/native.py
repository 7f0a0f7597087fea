"""The C kernels of `ops/kernels`: each source built once for a machine by its C compiler, kept, and called for tensors
on a CPU.

Walks through time in which a step is a few vectors wide cost torch a call for each operation of each step, and its
rows more passes over memory than they need; the kernels do one pass. Each stands inside an operator that has a form in
plain torch, which is taken where there is no kernel: without a compiler, for fp64, off the CPU, and with
`HF_ARCH_BACKEND=torch`. `tests/ops/test_native.py` holds the two against each other.

A build is one call of the compiler, 0.2 to 4 s, at the first call that a source is needed for: a model pays for its own
operators. Its name in `$HF_ARCH_CACHE/kernels` is a hash of the source, the headers, the compiler, the flags and the
processor, so that none is used that another machine or version made. One of several processes builds, the others wait.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.files import temporary_name
from ..core.one_writer import only_writer
from ..core.processor import processor_lines
from ..environment import cache_folder, read
from .compat import watched

# By file name. A model that is bundled with its code has the texts themselves here: `hub/bundle.py` writes them.
SOURCES = {path.name: path.read_text("utf-8") for path in sorted((Path(__file__).parent / "kernels").glob("*.[ch]"))}
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_SECONDS = 120
_PAUSE = 0.05  # between two looks at what another process builds
_WORTH_THREADS = 2**15
"""From so many elements on a pass over memory is worth more than one thread."""
_NUMBERS = (int, float, ctypes.c_void_p)
_PLAIN = (Tensor, torch.nn.Parameter)  # not those that stand for several or for none
_log = logging.getLogger(__name__)
_nothing_is_kept = False
_shapes_alone = False
_unbuilt: set[str] = set()


class Kernels:
    """The kernels of one source, held by the operator that calls them.

    Args:
        source: a file name of `SOURCES`.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def for_tensors(self, *tensors: Tensor | None) -> Any:
        """The library where it can work on all of these, which the caller widens to fp32. Else None."""
        return self.loaded() if unobserved(*tensors) else None

    def loaded(self) -> Any:
        """The library, for a gradient whose forward pass it has computed; `_Nothing` within `on_shapes`."""
        return _Nothing() if _shapes_alone and self.library is not None else self.library

    @cached_property
    def library(self) -> ctypes.CDLL | None:
        """The library, built where this machine has none yet; None where that is not possible, with the reason
        logged."""
        found = compiler()
        if found is None:
            return None
        command, identity = found
        texts = {name: text for name, text in SOURCES.items() if name == self.source or name.endswith(".h")}
        digest = hashlib.sha256(repr((texts, identity)).encode()).hexdigest()
        target = cache_folder() / "kernels" / Path(self.source).stem / f"{digest[:24]}.so"
        try:
            if target.exists() or not _nothing_is_kept:
                _build_once(command, texts, target)
                return ctypes.CDLL(str(target))
            with tempfile.TemporaryDirectory() as folder:
                _build(command, texts, Path(folder, target.name))
                return ctypes.CDLL(str(Path(folder, target.name)))
        except (OSError, subprocess.SubprocessError) as error:
            _unbuilt.add(self.source)
            _log.warning("%s could not be built, plain torch takes its place: %s", self.source, _reason(error))
            return None


def unobserved(*tensors: Tensor | None) -> bool:
    """Whether all of these are plain tensors on a CPU, none of fp64, in a call whose single operations nobody looks at,
    so that others may do the same."""
    if watched() and not _shapes_alone:
        return False
    for x in tensors:
        if x is not None and (x.device.type != "cpu" or x.dtype == torch.float64):
            return False
        if x is not None and type(x) not in _PLAIN and not _shapes_alone:
            return False
    return read("HF_ARCH_BACKEND") != "torch"


def all_built() -> bool:
    """Whether no source failed that this process has asked for."""
    return not _unbuilt


class _Nothing:
    """A library whose kernels leave their results as they were allocated."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *arguments: 0


@contextmanager
def on_shapes() -> Iterator[None]:
    """Within, tensors hold no numbers: a call allocates what it would for the kernels, which do not run. For who counts
    memory on fake tensors."""
    global _shapes_alone
    before, _shapes_alone = _shapes_alone, True
    try:
        yield
    finally:
        _shapes_alone = before


def shapes_alone() -> bool:
    """Whether this call is within `on_shapes`."""
    return _shapes_alone


def keep_nothing() -> None:
    """For dry runs, which write nothing: what this process builds is loaded and removed."""
    global _nothing_is_kept
    _nothing_is_kept = True


class Pointer(ctypes.c_void_p):
    """The address of a contiguous tensor, which lives as long as this does, or of none; of any where the kernel is told
    its strides.

    Raises:
        ValueError: a tensor that is not contiguous.
    """

    def __init__(self, x: Tensor | None, strided: bool = False) -> None:
        super().__init__(_address(x, strided))
        self.tensor = x


def _address(x: Tensor | None, strided: bool = False) -> int | None:
    if x is None or _shapes_alone:
        return None
    if not strided and not x.is_contiguous():
        raise ValueError(f"strides {x.stride()} of a tensor {tuple(x.shape)} are not allowed; it must be contiguous")
    return x.data_ptr()


class Struct(ctypes.Structure):
    """A struct of 64-bit numbers, then addresses of contiguous tensors or of none, which it keeps alive; of others by
    a `Pointer`."""

    def __init__(self, *values: int | float | Tensor | Pointer | None) -> None:
        self._kept = values  # a name that no field has
        super().__init__(*[x if isinstance(x, _NUMBERS) else _address(x) for x in values])


def fields(integers: str, tensors: str, doubles: str = "") -> list[tuple[str, type]]:
    """Of a `Struct`: the names of its integers, of its tensors, and of doubles between them."""
    return [
        *((name, ctypes.c_int64) for name in integers.split()),
        *((name, ctypes.c_double) for name in doubles.split()),
        *((name, ctypes.c_void_p) for name in tensors.split()),
    ]


def threads_for(x: Tensor) -> int:
    """For a pass over the memory of x."""
    return torch.get_num_threads() if x.numel() >= _WORTH_THREADS else 1


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


def rows(x: Tensor) -> Tensor:
    """x [B, T, D] with rows at `x.stride(1)` numbers from each other, each without gaps: a part of a wider tensor stays
    where it is."""
    length, width = x.shape[1:]
    in_order = x.stride(2) == 1 and x.stride(1) >= width and x.stride(0) == length * x.stride(1)
    return x if in_order else x.contiguous()


def must_have_memory(failed: int) -> None:
    """For kernels that return whether they had none."""
    if failed:
        raise MemoryError("no memory for a C kernel's sums")


@lru_cache(maxsize=1)
def compiler() -> tuple[list[str], str] | None:
    """The command, with flags, of `$CC` or of the machine's C compiler, and all that its output depends on besides the
    sources; None where there is none."""
    for command in ((read("CC") or "").split(), ["cc"], ["gcc"], ["clang"]):
        if command and (path := shutil.which(command[0])):
            break
    else:
        _log.info("no C kernels: no C compiler is installed")
        return None
    command = [path, *command[1:]]
    try:
        version = subprocess.run([*command, "--version"], capture_output=True, timeout=_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("no C kernels, plain torch takes their place: %s --version: %s", path, _reason(error))
        return None
    # torch's own OpenMP is gcc's; clang would bring a second one into the process
    command += _FLAGS if b"clang" in version else (*_FLAGS, "-fopenmp")
    return command, repr((command, version, _processor()))


def _processor() -> str:
    """What `-march=native` looks at: the processor's model and what it can do."""
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part")
    said = sorted({f"{name}: {value}" for name, value in processor_lines() if name in wanted})
    return " ".join([platform.machine(), platform.processor(), *said])


def _build_once(command: list[str], texts: dict[str, str], target: Path) -> None:
    """Builds where no other process has, or does: that is waited for, but no longer than a build may take, since a
    process that was forked during one keeps its lock."""
    target.parent.mkdir(parents=True, exist_ok=True)
    patience = time.monotonic() + _SECONDS
    while not target.exists():
        with only_writer(target.parent, wait=False) as alone:
            if (alone or time.monotonic() > patience) and not target.exists():
                _build(command, texts, target)
        if not alone:
            time.sleep(_PAUSE)


def _build(command: list[str], texts: dict[str, str], target: Path) -> None:
    """Compiles to a name of its own and renames it, so that other processes see all of the library or nothing."""
    made = temporary_name(target)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in texts.items():
                Path(folder, name).write_text(text, "utf-8")
            files = [str(Path(folder, name)) for name in texts if name.endswith(".c")]
            subprocess.run([*command, *files, "-o", str(made)], capture_output=True, timeout=_SECONDS, check=True)
        os.replace(made, target)
    finally:
        made.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", None)
    return said.decode(errors="replace").strip().splitlines()[0] if said else str(error)
