"""Folders import downwards only, no files import each other in a circle (but for lazy exports of an `__init__`), and no
file is so long that it hides a second concept."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "hf_arch"
# From the lowest to the highest. A file may import from its own layer and from those before it. The single files of the
# package itself stand where they are used from.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("core", "environment", "deprecations", "numerics", "versions"),
    ("ops",),
    ("layers",),
    ("models", "deferred", "api"),
    ("interchange",),
    ("checkpoints",),
    ("data",),
    ("optimizers", "schedules"),
    ("recipe",),
    ("runs",),
    ("evaluation",),
    ("training",),
    ("experiments",),
    ("analysis",),
    ("report",),
    ("hub",),
    ("checks", "flop_check", "perturbed", "file_checks", "plugin_checks", "coordinate_check"),
    ("cli", "lm_eval", "startup_hook", "__main__"),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}
FACES = {name for name, file in MODULES.items() if file.name == "__init__.py"}


def nodes_at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below `node` but those under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from nodes_at_run_time(child)


def imports(name: str) -> Iterator[tuple[int, str]]:
    """(line, module of ours) of each import in a module, also inside its functions."""
    for node in nodes_at_run_time(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            package = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *filter(None, [node.module])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            continue
        for target in targets:
            while target and target not in MODULES:
                target = target.rpartition(".")[0]
            if target not in ("", name):
                yield node.lineno, target


def graph() -> dict[str, list[tuple[int, str]]]:
    return {
        name: [(line, to) for line, to in imports(name) if to not in FACES] for name in MODULES if name not in FACES
    }


def layer(module: str) -> str:
    return module.split(".")[1]


def test_every_folder_has_its_layer() -> None:
    assert {layer(name) for name in MODULES if name != "hf_arch"} - {"__init__"} == set(RANK)


def test_no_folder_imports_one_above_it() -> None:
    upwards = [
        f"{MODULES[name].relative_to(PACKAGE.parent)}:{line}: {layer(name)} imports {target}, which is above it"
        for name, found in graph().items()
        for line, target in found
        if RANK[layer(target)] > RANK[layer(name)]
    ]
    assert not upwards, "\n".join(upwards)


def test_no_files_import_each_other_in_a_circle() -> None:
    sys.setrecursionlimit(10_000)
    try:
        TopologicalSorter({name: {target for _, target in found} for name, found in graph().items()}).prepare()
    except CycleError as error:
        circle = error.args[1]
        lines = [
            f"{MODULES[name].relative_to(PACKAGE.parent)}:{line}: imports {target}"
            for target, name in pairwise(circle)
            for line, to in graph()[name]
            if to == target
        ]
        raise AssertionError("\n".join(lines)) from None


def test_typer_is_in_the_command_line_alone() -> None:
    elsewhere = [
        name
        for name, file in MODULES.items()
        if not name.startswith("hf_arch.cli")
        and any(
            (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "typer" for alias in node.names))
            or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "typer")
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        )
    ]
    assert not elsewhere


def test_no_file_has_more_than_400_lines() -> None:
    lines = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in MODULES.items()}
    assert not {name: count for name, count in lines.items() if count > 400}
