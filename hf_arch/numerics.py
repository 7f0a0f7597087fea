"""The version of what the package computes, apart from the version of the package: most releases change no number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NUMERICS_VERSION = 6
"""Raised by one when the same recipe and seed give other numbers than before, which gives every run a new name.
CONTRIBUTING.md says when; a test compares the defaults with those recorded for this number."""

NUMERICS_OF_RELEASE = {"0.1.0.dev0": 1}
"""The releases whose runs recorded the version of the package alone: the `NUMERICS_VERSION` that they had."""


def numerics_version(provenance: Mapping[str, Any]) -> int | None:
    """The `NUMERICS_VERSION` that a run was trained with, from its provenance; None where that cannot be known."""
    return provenance.get("numerics") or NUMERICS_OF_RELEASE.get(str(provenance.get("hf_arch")))
