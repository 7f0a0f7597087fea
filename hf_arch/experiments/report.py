"""The old place of `write_report`, which was documented: it is `hf_arch.experiments.write_report` now."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    found = getattr(import_module("hf_arch.report.page"), name)
    warnings.warn("hf_arch.experiments.report is hf_arch.report.page now", DeprecationWarning, stacklevel=2)
    return found
