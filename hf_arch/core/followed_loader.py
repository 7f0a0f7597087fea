"""An import loader behind which an action follows."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any


class FollowedLoader:
    """Another loader, and `action` with the module once it is executed. It passes everything else through (sources,
    resources)."""

    def __init__(self, loader: Any, action: Callable[[ModuleType], None]):
        self._loader, self._action = loader, action

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its own loader, as if no one had stood in between.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._action(module)
