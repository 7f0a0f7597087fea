"""Every environment variable that the package reads or sets: its meaning, its default and what is allowed.

The rest of the package asks here (`read`, `set_variable`, `temporarily`) and leaves `os.environ` alone, which a test
checks; docs/environment.md is made from this table.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .core.errors import choice_error, nearest
from .core.warn import warn_once

PREFIX = "HF_ARCH_"


@dataclass(frozen=True)
class Variable:
    """One variable.

    meaning: what it decides, in a sentence.
    default: what holds where it is not set, in words or as the value.
    choices: the only values that it may have; empty where any text is allowed.
    allowed: what is allowed, in words, where there are no choices.
    group: the heading in the documents.
    """

    meaning: str
    default: str
    group: str
    allowed: str = "any text"
    choices: tuple[str, ...] = ()


_OURS, _TESTS, _LAUNCH = "Variables of hf_arch", "Tests of this repository", "Set by launchers, and read"
_TRACK, _SET = "Experiment trackers and the machine", "Set for libraries, where you have not set them"
_FLAG = ("0", "1", "false", "true", "no", "yes", "off", "on")
_SIZE = "number of copies that the launcher started; above 1 without torch's own variables the run is refused"
_PRECISION = {
    "NVIDIA_TF32_OVERRIDE": "Whether NVIDIA's libraries may round products to TF32, over what torch says",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "Whether torch lets products of fp32 be rounded to TF32",
    "TORCHINDUCTOR_EMULATE_PRECISION_CASTS": "Whether compiled code rounds between fused steps as eager code does",
}

VARIABLES: dict[str, Variable] = {
    "HF_ARCH_BACKEND": Variable(
        "`auto` uses flash-linear-attention's kernels on CUDA tensors where it is installed, and on a CPU C kernels "
        "that are built once where there is a C compiler; `torch` uses neither.",
        *("auto", _OURS),
        choices=("auto", "torch"),
    ),
    "HF_ARCH_CACHE": Variable(
        "The folder of downloaded and prepared data, tokenizers, measured speeds, C kernels and names in transformers.",
        *("~/.cache/hf_arch", _OURS, "a folder"),
    ),
    "HF_ARCH_CPU_FSDP": Variable(
        "Makes accelerate take its FSDP path on CPUs, which it does not support itself.",
        *("0", _OURS),
        choices=_FLAG,
    ),
    "HF_ARCH_PEFT_DEFAULTS": Variable(
        "Whether PEFT learns the default LoRA targets of our models.",
        *("1", _OURS),
        choices=_FLAG,
    ),
    "HF_ARCH_PLUGINS": Variable(
        "Python files that register components; they are imported, which runs their code.",
        *("none", _OURS, f"paths, separated by `{os.pathsep}`"),
    ),
    "HF_ARCH_PRECISION": Variable(
        "What `training.precision: auto` becomes in place of the faster one, which is measured once on a CPU.",
        *("auto", _OURS),
        choices=("auto", "fp32", "bf16"),
    ),
    "HF_ARCH_START_METHOD": Variable(
        "How a set starts its runs: `fork` from a process that has imported everything once (on Linux without an "
        "accelerator, in a set of several runs), or `spawn` each with imports of its own.",
        *("fork", _OURS),
        choices=("fork", "spawn"),
    ),
    "HF_ARCH_SHAKESPEARE": Variable(
        "The text of tiny Shakespeare, for the test of the published loss.", "the test is skipped", _TESTS, "a file"
    ),
    "HF_ARCH_TEST_MODELS": Variable("How many random models the slow test draws.", "60", _TESTS, "a number above 0"),
    "HF_ARCH_TEST_WORKERS": Variable("Processes of `scripts/test.sh`.", "2", _TESTS, "a number above 0"),
    "RANK": Variable("The number of this process among those of the run.", "0", _LAUNCH, "a number from 0"),
    "WORLD_SIZE": Variable("How many processes train the run.", "1", _LAUNCH, "a number above 0"),
    "CC": Variable("The command that compiles the C kernels.", "cc, gcc or clang", _TRACK, "a command"),
    "PATH": Variable(
        "Where `hf-arch with COMMAND` looks for the command, after this Python's own folder.", "the system's", _LAUNCH
    ),
    "MASTER_ADDR": Variable(
        "Where processes meet; under accelerate, that several were asked for.", "one process", _LAUNCH, "an address"
    ),
    "ACCELERATE_MIXED_PRECISION": Variable(
        "The precision that accelerate computes in.", "no", _LAUNCH, "no, bf16 or fp16"
    ),
    "ACCELERATE_USE_FSDP": Variable("Whether accelerate shards by FSDP.", "false", _LAUNCH, "true or false"),
    "ACCELERATE_USE_DEEPSPEED": Variable("Whether accelerate uses DeepSpeed.", "false", _LAUNCH, "true or false"),
    "ACCELERATE_USE_CPU": Variable("Whether accelerate stays on the CPU.", "false", _LAUNCH, "true or false"),
    "OMPI_COMM_WORLD_SIZE": Variable(f"Open MPI: {_SIZE}.", "1", _LAUNCH, "a number above 0"),
    "PMI_SIZE": Variable(f"MPICH: {_SIZE}.", "1", _LAUNCH, "a number above 0"),
    "MV2_COMM_WORLD_SIZE": Variable(f"MVAPICH: {_SIZE}.", "1", _LAUNCH, "a number above 0"),
    "SLURM_STEP_NUM_TASKS": Variable(f"Slurm: {_SIZE}.", "1", _LAUNCH, "a number above 0"),
    "CUDA_VISIBLE_DEVICES": Variable(
        "The GPUs that may be used; `--workers` shares them out.", "all", _TRACK, "names, separated by commas"
    ),
    "OMP_NUM_THREADS": Variable(
        "Threads of a process; with several workers each gets its share of the cores where it is not set.",
        *("all cores", _TRACK, "a number above 0"),
    ),
    "OMP_WAIT_POLICY": Variable(
        "`PASSIVE`: threads that wait leave their core to others; set where training starts on a busy machine.",
        *("as the machine is", _TRACK, "ACTIVE or PASSIVE"),
    ),
    "GOMP_SPINCOUNT": Variable(
        "How long a waiting thread spins before it sleeps; set to 1000 where training starts on an idle machine.",
        *("as the machine is", _TRACK, "a number"),
    ),
    "KMP_BLOCKTIME": Variable(
        "The same for Intel's OpenMP, in ms; with it the two above are left alone.", "200", _TRACK
    ),
    **{
        name: Variable(
            "The allocator of Linux's C library; with one of these it is left alone where training starts, which else "
            "keeps memory that is freed for the next step.",
            *("none", _TRACK),
        )
        for name in (
            "MALLOC_MMAP_MAX_",
            "MALLOC_MMAP_THRESHOLD_",
            "MALLOC_TRIM_THRESHOLD_",
            "MALLOC_TOP_PAD_",
            "GLIBC_TUNABLES",
        )
    },
    "WANDB_API_KEY": Variable("The key of W&B; without one its runs are offline.", "none", _TRACK, "a key"),
    "WANDB_IDENTITY_TOKEN_FILE": Variable("W&B's other way to give a key.", "none", _TRACK, "a file"),
    "WANDB_BASE_URL": Variable("The server of W&B, whose key is looked up.", "W&B's own", _TRACK, "an address"),
    "WANDB_MODE": Variable(
        "Whether W&B sends anything; `offline` is set where there is no key.", "online", _TRACK, "W&B's modes"
    ),
    "NETRC": Variable("The file in which `wandb login` keeps the key.", "~/.netrc", _TRACK, "a file"),
    **{
        name: Variable(f"{meaning}; recorded with every run.", "not set", _TRACK)
        for name, meaning in _PRECISION.items()
    },
    "WANDB_PROJECT": Variable("The project of a tracked run.", "`training.project`", _SET),
    "WANDB_DIR": Variable("Where W&B writes.", "the run's folder", _SET, "a folder"),
    "TENSORBOARD_LOGGING_DIR": Variable("Where TensorBoard writes.", "`tensorboard/` in the run's folder", _SET),
    "TOKENIZERS_PARALLELISM": Variable("Threads of tokenizers, which a fork would warn of.", "false", _SET),
    "KINETO_LOG_LEVEL": Variable("Notes of torch's profiler.", "6: none", _SET),
    "DISABLE_MULTIPROC": Variable("Keeps lm_eval's bootstraps in this process, whatever it was.", "1", _SET),
    "GPTQMODEL_CPU_WORKERS": Variable("Workers of gptqmodel.", "the number of cores", _SET, "a number above 0"),
}


def read(name: str) -> str | None:
    """The value of a listed variable, None where it is not set (or empty, where it has choices).

    Raises:
        ConfigError: a value that is not among the choices.
    """
    variable = VARIABLES[name]
    value = os.environ.get(name)
    if variable.choices:
        if not value:
            return None
        value = value.lower()
        if value not in variable.choices:
            raise choice_error(name, value, variable.choices)
    return value


def cache_folder() -> Path:
    """`HF_ARCH_CACHE`, else `~/.cache/hf_arch`."""
    # Path.expanduser raises for an unknown `~name`, which stays here
    return Path(os.path.expanduser(read("HF_ARCH_CACHE") or "~/.cache/hf_arch")).resolve()


def is_on(name: str, default: bool = False) -> bool:
    """Whether a listed switch is on; `default` where it is not set."""
    value = read(name)
    return default if value is None else value in ("1", "true", "yes", "on")


def known() -> dict[str, str]:
    """All listed variables that are set."""
    return {name: value for name in VARIABLES if (value := read(name)) is not None}


def hashes(names: Iterable[str]) -> dict[str, str]:
    """{name: hash of its value} of those variables that are set, listed or not: what a plugin may read."""
    found = ((name, os.environ.get(name)) for name in names)
    return {name: hashlib.sha256(value.encode()).hexdigest()[:8] for name, value in found if value is not None}


def set_variable(name: str, value: str, *, replace: bool = False) -> None:
    """Sets a listed variable for this process where it is not set (with `replace`: in any case)."""
    assert name in VARIABLES, name
    if replace or name not in os.environ:
        os.environ[name] = value


@contextmanager
def temporarily(values: Mapping[str, str], *, replace: bool = False) -> Iterator[None]:
    """Inside it these listed variables are set, where they were not (with `replace`: in any case)."""
    assert set(values) <= set(VARIABLES), values
    before = {name: os.environ.get(name) for name in values}
    changed = {name: value for name, value in values.items() if replace or before[name] is None}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name in changed:
            if (value := before[name]) is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def warn_unknown() -> None:
    """One line, once, for each variable that is set, begins like ours and is none: it would have no effect."""
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in VARIABLES:
            near = nearest(name, [known for known in VARIABLES if known.startswith(PREFIX)])
            hint = f"; nearest: {near}" if near else ""
            if os.environ.get("RANK", "0") == "0":
                warn_once(name, "warning: %s: not a variable of hf_arch%s", name, hint)
