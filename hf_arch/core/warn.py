"""Warnings of the package: one line each, once in a process."""

from __future__ import annotations

import logging
from collections.abc import Hashable

_given: set[Hashable] = set()


def warn_once(key: Hashable, message: str, *args: object) -> None:
    """Logs a warning as `hf_arch`, unless one of this key was logged before."""
    if key not in _given:
        _given.add(key)
        logging.getLogger("hf_arch").warning(message, *args)
