"""The versions of transformers and torch that this package works with, and what is said under others.

transformers moves what models rest on between minor versions (5.24 renamed the cache argument, and every cached
generation became wrong without an error), so the range is closed above. `scripts/test.sh` runs the tests on its
lower end, `scripts/test_versions.sh` the model suites on its upper end. `pyproject.toml` repeats these bounds.
"""

from __future__ import annotations

import re
import sys
import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class Supported:
    """A range of versions, `oldest` and up to `newest` included; only the first two numbers count."""

    oldest: str
    newest: str

    @property
    def below(self) -> str:
        """The first version beyond the range."""
        major, minor = _numbers(self.newest)
        return f"{major}.{minor + 1}"


SUPPORTED = {"transformers": Supported("5.23", "5.24"), "torch": Supported("2.6", "2.14")}


def require_supported_versions(what: str, *, refuse_newer: bool = False) -> None:
    """Check the installed versions, without importing anything heavy.

    Args:
        what: who asks, in the messages: "hf_arch 0.1.0".
        refuse_newer: make a version newer than the range an error too, instead of a warning.

    Raises:
        ImportError: one line with the installed version, the range and the command that installs it.
    """
    for package, supported in SUPPORTED.items():
        installed = installed_version(package)
        if installed is None:
            continue
        wanted = f'"{package}>={supported.oldest},<{supported.below}"'
        told = f"{what} works with {package} {supported.oldest} to {supported.newest}, and {installed} is installed"
        older = _numbers(installed) < _numbers(supported.oldest)
        newer = _numbers(installed) > _numbers(supported.newest)
        if older or (newer and refuse_newer):
            raise ImportError(f"{told}: pip install {wanted}")
        if newer:
            warnings.warn(f"{told}, which it was not tested with: pip install {wanted}", stacklevel=3)


def installed_version(package: str) -> str | None:
    """The version of a package: of the loaded module, else of what is installed; None where neither is known."""
    loaded = getattr(sys.modules.get(package), "__version__", None)
    if loaded is not None:
        return str(loaded)
    from importlib import metadata  # costs as much as the rest of this package's import

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", version + ".0")[:2]
    return int(major), int(minor)
