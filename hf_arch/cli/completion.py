"""What the shell completes: architectures, recipes, folders of runs. Nothing here imports torch: a key press waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hf_arch.core.recipes import short_names
from hf_arch.deferred import model_types

Complete = Callable[[str], list[str]]


def architectures(incomplete: str) -> list[str]:
    """Names of the package's architectures, read from its files."""
    return _starting(incomplete, (name.removeprefix("hfa_") for name in model_types()))


def recipes(incomplete: str) -> list[str]:
    """Names of the recipes that come with the package, and YAML files of the folder that is being typed."""
    return _starting(incomplete, [*short_names(), *_files(incomplete, (".yaml", ".yml"))])


def runs(incomplete: str) -> list[str]:
    """Folders below the one that is being typed, and runs and sets below `results/`."""
    below = [str(path.parent) for path in Path("results").glob("*/*/results.json")] if Path("results").is_dir() else []
    sets = {str(Path(run).parent) for run in below}
    return _starting(incomplete, [*sets, *below, *_files(incomplete, ())])


def choices(written: str) -> dict[str, Any]:
    """The metavar of an option with a few fixed values, `auto|always|never`, and their completion. A name in capitals
    stands for values of the user's."""
    names = [name for name in written.split("|") if not name.isupper()]

    def complete(incomplete: str) -> list[str]:
        return _starting(incomplete, names)

    return {"metavar": written, "autocompletion": complete}


def targets(incomplete: str) -> list[str]:
    """What `info` takes: an architecture, a recipe, a run."""
    return list(dict.fromkeys([*architectures(incomplete), *recipes(incomplete), *runs(incomplete)]))


def checkable(incomplete: str) -> list[str]:
    """What `check` takes: an architecture, or a Python file."""
    return [*architectures(incomplete), *_starting(incomplete, _files(incomplete, (".py",)))]


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})


def _files(incomplete: str, endings: tuple[str, ...]) -> list[str]:
    """Files with one of `endings`, and folders, in the folder that `incomplete` names."""
    typed = Path(incomplete)
    folder = typed if incomplete.endswith("/") else typed.parent
    if not folder.is_dir():
        return []
    return [
        f"{path}/" if path.is_dir() else str(path)
        for path in folder.iterdir()
        if not path.name.startswith(".") and (path.is_dir() or path.suffix in endings)
    ]
