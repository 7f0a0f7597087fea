"""Registration with transformers' Auto classes, now or as soon as they are imported.

transformers has no entry points for plugins, and importing its Auto classes costs seconds. Until somebody does so,
one finder waits on `sys.meta_path` for that single import, runs it, registers, and takes itself away.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

AUTO_MODULE = "transformers.models.auto.modeling_auto"


def register_with_auto_classes() -> None:
    """Register every architecture, at once if the Auto classes are loaded, else right after they are."""
    if AUTO_MODULE in sys.modules:
        load_all()
    elif not any(isinstance(finder, _WaitForAutoClasses) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WaitForAutoClasses())


def require_auto_classes() -> None:
    """Import the Auto classes first of all: it makes this package register itself, which must not happen while one of
    its modules is half imported. Called by the packages that import transformers."""
    importlib.import_module(AUTO_MODULE)


def load_all() -> None:
    """Import every part and every architecture, which registers them."""
    for name in ("layers.mixers", "layers.ffns", "layers.streams", "models.architectures"):
        package = importlib.import_module(f".{name}", __package__)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")


class _WaitForAutoClasses(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AUTO_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _LoadThenRegister(spec.loader)
        return spec


class _LoadThenRegister(Loader):
    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        # The module must look as if no one had stood in between, e.g. to importlib.reload and pickling.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        load_all()
