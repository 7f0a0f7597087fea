"""What the modules of plugins hold for all models of a process: lists, tables, numbers and objects of their own, also
as attributes of their classes. A part may keep there what it saw, where no model has it.
"""

from __future__ import annotations

import copy
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from torch import Tensor, nn

from hf_arch.core.plugin_patches import from_plugin
from hf_arch.core.plugin_source import PLUGIN_MODULE

_HOLD = (dict, list, set, deque, bytearray, np.ndarray, Tensor, int, float)
_LARGEST = 1 << 24
"""Numbers of an array of which a copy is kept."""


class PluginGlobals:
    """As they are now; to be made before training. What cannot be copied is left out."""

    def __init__(self, model: nn.Module) -> None:
        of_the_model = (*model.modules(), *model.parameters(), *model.buffers())
        self.kept = {id(one): one for one in of_the_model}
        self.began = list(self._copies([(owner, name, getattr(owner, name)) for owner, name in _places()]))

    @contextmanager
    def as_they_began(self) -> Iterator[None]:
        """Inside, a plugin finds what there was when this was made."""
        now = {(owner, name): getattr(owner, name) for owner, name, _ in self.began if hasattr(owner, name)}
        try:
            for owner, name, value in self._copies(self.began):
                with suppress(AttributeError, TypeError):  # of an enumeration
                    setattr(owner, name, value)
            yield
        finally:
            for (owner, name), value in now.items():
                with suppress(AttributeError, TypeError):
                    setattr(owner, name, value)

    def _copies(self, places: list[tuple[Any, str, Any]]) -> Iterator[tuple[Any, str, Any]]:
        copied: dict[int, Any] = dict(self.kept)  # one object under two names stays one
        for owner, name, value in places:
            try:
                yield owner, name, copy.deepcopy(value, copied)
            except Exception:  # an object of a plugin may raise anything
                continue


def _places() -> Iterator[tuple[Any, str]]:
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(PLUGIN_MODULE):
            classes = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module_name]
            for owner in (module, *classes):
                for name, value in list(vars(owner).items()):
                    if not name.startswith("__") and _holds(value):
                        yield owner, name


def _holds(value: Any) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return (value.numel() if isinstance(value, Tensor) else value.size) <= _LARGEST
    return isinstance(value, _HOLD) or (from_plugin(type(value)) and not isinstance(value, type))
