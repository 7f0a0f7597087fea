"""Where a result comes from: versions, commit, device, threads, command. Names no user and no folder of this
machine.
"""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

import hf_arch
from hf_arch.core.plugin_files import packages_of
from hf_arch.core.plugin_patches import replaced
from hf_arch.core.plugins import Plugin
from hf_arch.core.processor import processor_says
from hf_arch.data import SeededOrder
from hf_arch.environment import hashes, read
from hf_arch.numerics import NUMERICS_VERSION
from hf_arch.runs.process_settings import process_settings

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "numpy",
    "flash-linear-attention",
    "flash-attn",
)

MOVE_NUMBERS = ("HF_ARCH_BACKEND", "HF_ARCH_CPU_FSDP", "HF_ARCH_PRECISION")
"""Environment variables that move the numbers of a run, recorded where they are set."""

OF_OTHERS = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCHINDUCTOR_EMULATE_PRECISION_CASTS")
"""The same of other libraries."""

ORDER_SAMPLES = 4096  # an order is a function of seed and size: two that agree on so many samples are one


def environment(device: torch.device) -> dict[str, Any]:
    """What may move the last digits of a run: versions, source, device, threads."""
    return {
        "hf_arch": hf_arch.__version__,
        "numerics": NUMERICS_VERSION,
        "source_sha256": source_digest(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


def provenance(device: torch.device, plugins: Iterable[Plugin] = ()) -> dict[str, Any]:
    """What is known before a run starts; the run adds its exit reason. `plugins` are those that it uses."""
    return {
        **environment(device),
        "environment": {
            **{name: value for name in (*MOVE_NUMBERS, *OF_OTHERS) if (value := read(name)) is not None},
            **process_settings(),
            **hashes(plugin_variables(used := list(plugins))),
        },
        "plugins": plugin_hashes(used),
        "plugin_parts": plugin_parts(used),
        "plugin_packages": plugin_packages(used),
        "replaced": replaced(),
        "git_commit": git_commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


_SECRETS_AND_PLACES = re.compile(
    r".*(TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY).*|HOME|USER|PATH|PWD|TMPDIR|.*_(HOME|CACHE)"
)


def plugin_variables(plugins: Iterable[Plugin]) -> list[str]:
    """Names in capitals that the text of these plugins holds: of environment variables, where there are such. Left out
    are secrets, of which not even a hash belongs into results, and what says where things lie on this machine."""
    texts = {text for plugin in plugins for text in plugin.source.strings()}
    named = [text for text in texts if re.fullmatch(r"[A-Z][A-Z0-9_]{2,}", text)]
    return sorted(text for text in named if not _SECRETS_AND_PLACES.fullmatch(text))


def plugin_parts(plugins: Iterable[Plugin]) -> dict[str, str]:
    """{kind and name of what these plugins register: hash of the code behind it}, whatever its files are called."""
    found = {}
    for plugin in plugins:
        code = hashlib.sha256(" ".join(sorted(plugin.source.hashes.values())).encode()).hexdigest()[:16]
        found.update({f"{registry.kind} {name}": code for part in plugin.parts for registry, name, _ in part.entries})
    return found


def plugin_packages(plugins: Iterable[Plugin]) -> dict[str, str]:
    """{package: version} of the installed packages that these plugins import, but those of `PACKAGES`."""
    names = {name for plugin in plugins for name in packages_of(plugin.source)}
    found = {name: _version(name) for name in names - set(PACKAGES)}
    if unknown := [name for name, version in found.items() if version is None]:  # called otherwise than its package
        distributions = metadata.packages_distributions()
        found |= {one: _version(one) for name in unknown for one in distributions.get(name, ()) if one not in PACKAGES}
    return {name: version for name, version in sorted(found.items()) if version is not None}


def plugin_hashes(plugins: Iterable[Plugin]) -> dict[str, str]:
    """{file name: sha256} of these plugins and of the files next to them that they import."""
    found: dict[str, str] = {}
    for plugin in plugins:
        for name, digest in plugin.source.hashes.items():
            key = name if found.get(name, digest) == digest else f"{digest[:8]}/{name}"
            found[key] = digest
    return found


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name()


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    return processor_says("model name") or platform.processor() or platform.machine()


def source_digest() -> str:
    """Hash over the package's own Python files: distinguishes two states of a checkout with the same version. What they
    are when this process asks first is what it has imported."""
    return _digest_of(Path(hf_arch.__file__).parent)


@cache
def _digest_of(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def order_fingerprint(order: SeededOrder, data_fingerprint: str) -> str:
    """Hash of the first rows that a run sees: equal for runs that see the same sequences in the same order."""
    rows = order.rows(np.arange(ORDER_SAMPLES))
    return hashlib.sha256(data_fingerprint.encode() + rows.astype("<i8").tobytes()).hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that decides the ids of a text: the fast tokenizer's own description of itself."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = repr(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def git_commit() -> str | None:
    """Commit of the checkout that the package lies in, with `+changes` where files differ; None where it is no
    checkout. As this process finds it first, as the sources.
    """
    return _commit_of(Path(hf_arch.__file__).parent)


@cache
def _commit_of(root: Path) -> str | None:
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return f"{commit}+changes" if _git(root, "status", "--porcelain", "--", ".") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=5, check=True)
    return result.stdout.strip()


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
