"""Named architectures: a module each, holding a config with its defaults and its model classes."""

import importlib
import pkgutil

from .. import mixers
from ..deferred import require_auto_classes


def load_all() -> None:
    """Import every mixer and every architecture, which registers them."""
    for package, path in ((mixers.__name__, mixers.__path__), (__name__, __path__)):
        for module in pkgutil.iter_modules(path):
            importlib.import_module(f"{package}.{module.name}")


require_auto_classes()
