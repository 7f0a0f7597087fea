"""What `import transformers` costs without need, left out of the processes of `hf-arch`. A program that imports hf_arch
is not touched.

- transformers reads 3,000 of its files, twice, to learn which names they hold. What it found is kept in the cache
  folder, under a name that follows from the place, size and time of each of these files.
- Losses of object detection import scipy.optimize, and Trainer imports `datasets`, and with it pandas. They get
  stand-ins, which import the library when something of it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from hf_arch.core.files import write_atomic
from hf_arch.core.followed_loader import followed_spec
from hf_arch.environment import cache_folder

NAMES_MODULE = "transformers.utils.import_utils"
_KEEPING_COMMANDS = ("train", "run", "serve")

Tables = dict[frozenset[str], dict[str, set[str]]]
"""{libraries that are needed: {module: names}}."""


def lighten_imports() -> None:
    """From now on transformers is imported so in this process. Later calls change nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the modules concerned as the others do, and stands at their import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == NAMES_MODULE:
            return followed_spec(fullname, path, target, _keep_names, lambda finder: finder is self)
        if (make := _STAND_INS.get(fullname)) is not None:
            around = partial(_standing_in, make)
            return followed_spec(fullname, path, target, _nothing, lambda finder: finder is self, around)
        return None


def _nothing(_module: ModuleType) -> None:
    pass


@contextmanager
def _standing_in(make: Callable[[], ModuleType]) -> Iterator[None]:
    """A stand-in under the name of a module, where that is not loaded, inside alone."""
    stand_in = make()
    if stand_in.__name__ not in sys.modules:
        if "." not in stand_in.__name__:  # whoever asks whether it is installed looks here; of a part, at the package
            stand_in.__spec__ = find_spec(stand_in.__name__)
        sys.modules[stand_in.__name__] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(stand_in.__name__) is stand_in:
            del sys.modules[stand_in.__name__]


class _StandIn(ModuleType):
    """A module to whoever imports it now; the true one is imported when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for these
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


class _Datasets(_StandIn):
    """To Trainer, which asks of each data set whether it is one of that library. Where nobody has imported the library
    there is none."""

    def __getattr__(self, name: str) -> Any:
        return _NoDataset if name == "Dataset" and self.__name__ not in sys.modules else super().__getattr__(name)


class _NoDataset:
    """A class without an object."""


def _scipy_optimize() -> ModuleType:
    module = _StandIn("scipy.optimize")
    module.linear_sum_assignment = _linear_sum_assignment  # type: ignore[attr-defined]
    return module


def _linear_sum_assignment(*args: Any, **kwargs: Any) -> Any:
    return import_module("scipy.optimize").linear_sum_assignment(*args, **kwargs)


_STAND_INS: dict[str, Callable[[], ModuleType]] = {
    "transformers.trainer": lambda: _Datasets("datasets"),
    "transformers.loss.loss_utils": _scipy_optimize,  # which imports all losses
}


def _keep_names(module: ModuleType) -> None:
    """Lets `define_import_structure` of transformers take what was found before for its folder of models."""
    find = getattr(module, "define_import_structure", None)
    if find is None or module.__file__ is None:
        return
    models = Path(module.__file__).parents[1] / "models"

    def define_import_structure(module_path: str | os.PathLike[str], prefix: str | None = None) -> Tables:
        place = Path(module_path)
        if place not in (models, models / "__init__.py"):
            return find(module_path, prefix)
        tables = _kept_names(models, find)
        dot = "" if prefix is None else f"{prefix}."
        return {libraries: {dot + name: set(held) for name, held in of.items()} for libraries, of in tables.items()}

    module.define_import_structure = define_import_structure  # type: ignore[attr-defined]


def _kept_names(models: Path, find: Callable[[Path], Tables]) -> Tables:
    """The names of the modules below a folder; anew where a file of it has changed."""
    global _names
    if _names is None:
        file = cache_folder() / "imports" / f"transformers-{_state(models)}.json"
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
            _names = {frozenset(needed): {name: set(held) for name, held in of.items()} for needed, of in rows}
            if not _names:
                raise ValueError("no names")
        except (OSError, ValueError, TypeError, AttributeError):
            _names = find(models)
            if sys.argv[1:2] and sys.argv[1] in _KEEPING_COMMANDS and "--dry-run" not in sys.argv:
                rows = [[sorted(needed), {k: sorted(held) for k, held in of.items()}] for needed, of in _names.items()]
                with suppress(OSError):  # a cache that cannot be written to is none
                    write_atomic(file, json.dumps(rows))
    return _names


_names: Tables | None = None


def _state(models: Path) -> str:
    """Hash of the place, the sizes and the times of all files that `find` reads, and of the one that holds it."""
    digest = hashlib.sha256(f"{sys.version} {models}".encode())
    waiting = [str(models), str(models.parent / "utils")]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir():
                    if entry.name != "__pycache__":
                        waiting.append(entry.path)
                elif entry.name.endswith(".py"):
                    about = entry.stat()
                    digest.update(f"{entry.path} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:20]
