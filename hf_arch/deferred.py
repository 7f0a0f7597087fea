"""Registration with transformers' Auto classes, without importing anything in the middle of somebody else's import.

transformers has no entry points for plugins, importing its Auto classes takes seconds, and our models cannot be
imported while its own modules are half imported. So `import hf_arch` only sees to it that the tables of the Auto
classes become `_LazyEntries` as soon as those tables exist. These know the names of the architectures, and import the
models when one of them is looked up, or when the table is listed outside of an import.

`CONFIG_MAPPING` is the table that finds an architecture by its `model_type`. The tables of models have config classes
as keys, and a config class exists only once its module is imported, which registers it: they are lazy only for being
listed.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from .core.followed_loader import followed_spec

CONFIG_MODULE = "transformers.models.auto.configuration_auto"
MODEL_MODULE = "transformers.models.auto.modeling_auto"
AUTO_CLASSES = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
)
# What a module has to hold before its tables can be replaced.
_NEEDED: dict[str, tuple[str, ...]] = {CONFIG_MODULE: ("CONFIG_MAPPING",), MODEL_MODULE: AUTO_CLASSES}
ARCHITECTURES = "models.architectures"
"""The package whose modules declare an architecture each, but for these two."""
NO_ARCHITECTURES = ("base", "declare")


def register_with_auto_classes() -> None:
    """Make the tables of the Auto classes know our architectures, now or as soon as the tables are there."""
    if not any(_finds_tables(finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TableFinder())
    _enter_loaded_tables()


def _enter_loaded_tables() -> None:
    for name in _NEEDED:
        module = sys.modules.get(name)
        if module is None:
            continue
        if _is_ready(module):
            _enter_tables(module)
        else:  # somebody imports us while transformers executes this very module
            module.__class__ = _HalfImported


def load_all() -> None:
    """Import every architecture, which registers it. Modules that are loaded cost a look-up."""
    _import_modules(ARCHITECTURES)
    _LazyEntries.loaded = True


def import_entries(home: str, name: str | None) -> None:
    """Import the module `home`, or where that is a package its module `name` if there is one; every module of it for
    None, unless this thread is in the middle of importing one of ours."""
    # No lock of our own: the import system's locks know how to avoid deadlocks between threads, ours would not.
    if name is not None:
        package = importlib.import_module(f".{home}", __package__)
        if name in _modules(*getattr(package, "__path__", [])):
            importlib.import_module(f"{package.__name__}.{name}")
    elif not _inside_an_import(__package__, installed=False):
        load_all() if home == ARCHITECTURES else _import_modules(home)


def _import_modules(home: str) -> None:
    if home in _complete:
        return
    package = importlib.import_module(f".{home}", __package__)
    for name in _modules(*getattr(package, "__path__", [])):
        importlib.import_module(f"{package.__name__}.{name}")
    _complete.add(home)


_complete: set[str] = set()


@cache
def _modules(*folders: str) -> list[str]:
    """The names of the modules of a package; none where it is a plain module, which has no folders."""
    return [module.name for module in pkgutil.iter_modules(folders)]


def model_types() -> list[str]:
    """The model_type of every architecture of the package, read from the names of its files."""
    found = pkgutil.iter_modules([str(Path(__file__).parent.joinpath(*ARCHITECTURES.split(".")))])
    return [f"hfa_{module.name}" for module in found if module.name not in NO_ARCHITECTURES]


class _LazyEntries(dict[Any, Any]):
    """The entries that were registered with a table, ours among them as soon as somebody wants to see them.

    Args:
        entries: what is registered already. promised: keys that the modules of our architectures will register.
    """

    loaded = False

    def __init__(self, entries: dict[Any, Any], promised: Collection[str] = ()):
        super().__init__(entries)
        self.promised = promised

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (not self.loaded and key in self.promised)

    def __missing__(self, key: Any) -> Any:
        if not self.loaded and key in self.promised:
            import_entries(ARCHITECTURES, key.removeprefix("hfa_"))
            if super().__contains__(key):
                return super().__getitem__(key)
        raise KeyError(key)

    def get(self, key: Any, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def keys(self) -> Any:
        if self._is_complete():
            return super().keys()
        return list({**dict.fromkeys(dict.keys(self)), **dict.fromkeys(self.promised)})

    def values(self) -> Any:
        return super().values() if self._is_complete() else list(dict.values(self))

    def items(self) -> Any:
        return super().items() if self._is_complete() else list(dict.items(self))

    def _is_complete(self) -> bool:
        """Whether every architecture is here, after importing them where that is safe."""
        if not self.loaded and not _inside_an_import("transformers", __package__):
            load_all()
        return self.loaded

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(self.items()),)  # a copy elsewhere has nothing to wait for


def _inside_an_import(*packages: str, installed: bool = True) -> bool:
    """Whether this thread is executing the body of a module of `packages` or, with `installed`, of any installed one.

    There ours must not be imported. A user's own module may be half imported: ours do not depend on it.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            name, file = frame.f_globals.get("__name__", "__main__"), frame.f_code.co_filename
            in_library = installed and ("site-packages" in file or "dist-packages" in file)
            if name != "__main__" and (name.partition(".")[0] in packages or in_library):
                return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _is_ready(module: ModuleType) -> bool:
    return all(name in ModuleType.__getattribute__(module, "__dict__") for name in _NEEDED[module.__name__])


def _enter_tables(module: ModuleType) -> None:
    """Replace the registered entries of a module's tables by lazy ones; after a reload, also register again."""
    if module.__name__ == CONFIG_MODULE:
        tables = [module.CONFIG_MAPPING]
    else:
        tables = [getattr(module, name)._model_mapping for name in AUTO_CLASSES]
    plain = [table for table in tables if not isinstance(getattr(table, "_extra_content", None), _LazyEntries)]
    for table in plain:
        if not hasattr(table, "_extra_content"):
            warnings.warn(
                f"{module.__name__} has no table of registered classes in this version of transformers: call "
                "hf_arch.list_architectures() before the Auto classes load a model of hf_arch",
                stacklevel=2,
            )
            return
        table._extra_content = _LazyEntries(
            table._extra_content, model_types() if module.__name__ == CONFIG_MODULE else ()
        )
    register_again = getattr(sys.modules.get(f"{__package__}.{ARCHITECTURES}.base"), "register_again", None)
    if plain and register_again is not None:
        register_again()


class _HalfImported(ModuleType):
    """The class of a module in the midst of its import: its tables are replaced at the first access from outside."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__") and _is_ready(self):
            self.__class__ = ModuleType  # type: ignore[assignment]
            _enter_tables(self)
        return ModuleType.__getattribute__(self, name)


class _TableFinder(MetaPathFinder):
    """Finds the modules that hold the tables as everybody does, and replaces the tables once they are executed."""

    finds_tables_of_hf_arch = True

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _NEEDED:
            if fullname.startswith("transformers."):
                _enter_loaded_tables()  # one may have been on its way to us before this finder was there
            return None
        return followed_spec(fullname, path, target, _enter_tables, _finds_tables)


def _finds_tables(finder: Any) -> bool:
    """Whether it is our finder, also one of before a reload, which is of another class."""
    return getattr(finder, "finds_tables_of_hf_arch", False)
