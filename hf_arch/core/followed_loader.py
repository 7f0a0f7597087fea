"""An import loader behind which an action follows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class FollowedLoader:
    """Another loader, and `action` with the module once it is executed, which is done inside of `around`. It passes
    everything else through (sources, resources)."""

    def __init__(
        self,
        loader: Any,
        action: Callable[[ModuleType], None],
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self._loader, self._action, self._around = loader, action, around

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its own loader, as if no one had stood in between.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        with self._around():
            self._loader.exec_module(module)
        self._action(module)


def followed_spec(
    name: str,
    path: Sequence[str] | None,
    target: ModuleType | None,
    action: Callable[[ModuleType], None],
    ours: Callable[[Any], bool],
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> ModuleSpec | None:
    """The spec of a module as the finders find it that are not `ours`, with `action` behind its import and
    `around` about it."""
    others = (finder for finder in list(sys.meta_path) if not ours(finder) and hasattr(finder, "find_spec"))
    spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target))), None)
    if spec is not None and spec.loader is not None:
        spec.loader = FollowedLoader(spec.loader, action, around)  # type: ignore[assignment]
    return spec
