"""The C kernels of `ops/kernels`: built once for a machine by its C compiler, kept, and called for tensors on a CPU.

Walks through time in which a step is a few vectors wide cost torch a call for each operation of each step, and its
rows more passes over memory than they need; the kernels do one pass. Each stands inside an operator that has a form in
plain torch, which is taken where there is no kernel: without a compiler, for fp64, off the CPU, and with
`HF_ARCH_BACKEND=torch`. `tests/ops/test_native.py` holds the two against each other.

A build is one call of the compiler, some seconds. Its name in `$HF_ARCH_CACHE/kernels` is a hash of the sources,
the compiler, the flags and the processor, so that none is used that another machine or version made.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.files import temporary_name
from ..environment import cache_folder, read
from .compat import watched

# By file name. A model that is bundled with its code has the texts themselves here: `hub/bundle.py` writes them.
SOURCES = {path.name: path.read_text("utf-8") for path in sorted((Path(__file__).parent / "kernels").glob("*.[ch]"))}
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_SECONDS = 120
_WORTH_THREADS = 2**15
"""From so many elements on a pass over memory is worth more than one thread."""
_PLAIN = (Tensor, torch.nn.Parameter)  # not those that stand for several or for none
_log = logging.getLogger(__name__)
_nothing_is_kept = False
_shapes_alone = False


def kernels_for(*tensors: Tensor | None) -> Any:
    """The library of kernels where it can work on all of these, which the caller widens to fp32: plain tensors on a
    CPU, none of fp64, in a call whose single operations nobody looks at. Else None."""
    for x in tensors:
        if x is not None and (x.device.type != "cpu" or x.dtype == torch.float64):
            return None
        if x is not None and type(x) not in _PLAIN and not _shapes_alone:
            return None
    seen = watched() and not _shapes_alone
    return None if read("HF_ARCH_BACKEND") == "torch" or seen else loaded()


def loaded() -> Any:
    """The library, for a gradient whose forward pass it has computed; `_Nothing` within `on_shapes`."""
    found = library()
    return _Nothing() if found is not None and _shapes_alone else found


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


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The library, built where this machine has none yet; None where that is not possible, with the reason logged."""
    compiler = _compiler()
    if compiler is None:
        _log.info("no C kernels: no C compiler is installed")
        return None
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=_SECONDS, check=True).stdout
        # torch's own OpenMP is gcc's; clang would bring a second one into the process
        flags = _FLAGS if b"clang" in version else (*_FLAGS, "-fopenmp")
        target = _target(compiler, version, flags)
        if target.exists() or not _nothing_is_kept:
            if not target.exists():
                _build([*compiler, *flags], target)
            return ctypes.CDLL(str(target))
        with tempfile.TemporaryDirectory() as folder:
            _build([*compiler, *flags], Path(folder, target.name))
            return ctypes.CDLL(str(Path(folder, target.name)))
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("the C kernels could not be built, plain torch takes their place: %s", _reason(error))
        return None


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
        if x is not None and not strided and not x.is_contiguous():
            raise ValueError(
                f"strides {x.stride()} of a tensor {tuple(x.shape)} are not allowed; it must be contiguous"
            )
        super().__init__(None if x is None or _shapes_alone else x.data_ptr())
        self.tensor = x


class Struct(ctypes.Structure):
    """A struct of 64-bit integers, then addresses of contiguous tensors or of none, which it keeps alive."""

    def __init__(self, *values: int | Tensor | None) -> None:
        self._kept = [x if isinstance(x, int) else Pointer(x) for x in values]  # a name that no field has
        super().__init__(*self._kept)


def fields(integers: str, tensors: str) -> list[tuple[str, type]]:
    """Of a `Struct`: the names of its integers, and of its tensors."""
    return [
        *((name, ctypes.c_int64) for name in integers.split()),
        *((name, ctypes.c_void_p) for name in tensors.split()),
    ]


def threads_for(x: Tensor) -> int:
    """For a pass over the memory of x."""
    return torch.get_num_threads() if x.numel() >= _WORTH_THREADS else 1


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


def must_have_memory(failed: int) -> None:
    """For kernels that return whether they had none."""
    if failed:
        raise MemoryError("no memory for a C kernel's sums")


def _compiler() -> list[str] | None:
    """The command of `$CC`, or of the machine's C compiler."""
    for command in ((read("CC") or "").split(), ["cc"], ["gcc"], ["clang"]):
        if command and (path := shutil.which(command[0])):
            return [path, *command[1:]]
    return None


def _target(compiler: list[str], version: bytes, flags: tuple[str, ...]) -> Path:
    """Where the library is kept."""
    digest = hashlib.sha256(repr((SOURCES, compiler, version, flags, _processor())).encode())
    return cache_folder() / "kernels" / f"{digest.hexdigest()[:24]}.so"


def _processor() -> str:
    """What `-march=native` looks at: the processor's model and what it can do."""
    known = [platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return " ".join(known)
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part")
    return " ".join([*known, *sorted({line for line in lines if line.split(":")[0].strip() in wanted})])


def _build(command: list[str], target: Path) -> None:
    """Compiles to a name of its own and renames it, so that other processes see all of the library or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    made = temporary_name(target)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in SOURCES.items():
                Path(folder, name).write_text(text, "utf-8")
            files = [str(Path(folder, name)) for name in SOURCES if name.endswith(".c")]
            subprocess.run([*command, *files, "-o", str(made)], capture_output=True, timeout=_SECONDS, check=True)
        os.replace(made, target)
    finally:
        made.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", None)
    return said.decode(errors="replace").strip().splitlines()[0] if said else str(error)
