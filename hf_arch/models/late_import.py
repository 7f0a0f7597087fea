"""What has to be told to a module of another library once somebody imports it: our models do not import it for this."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from ..core.followed_loader import followed_spec


def after_import(name: str, action: Callable[[ModuleType], None]) -> None:
    """Calls `action` with the module `name`: now where it is loaded, else once, right after its import."""
    module = sys.modules.get(name)
    if module is not None:
        action(module)
    elif not any(isinstance(finder, _Waiting) and finder.action is action for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting(name, action))


class _Waiting(MetaPathFinder):
    """Finds the module as the others do, and stays in line until its import has succeeded."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]):
        self.name, self.action = name, action
        self.searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self.searching:
            return None
        self.searching = True  # the others may hand the search on to everybody
        try:
            return followed_spec(fullname, path, target, self.told, lambda finder: finder is self)
        finally:
            self.searching = False

    def told(self, module: ModuleType) -> None:
        """The module is there: nothing more to wait for."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        self.action(module)
