"""Notebooks are valid, hold no output, and their cells run in order on a CPU, where they take their small form.

A cell tagged `not-run` is left out. `!command {name}` is run as IPython runs it: names in braces from the cells before.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
LINK = re.compile(r"\]\((?P<path>[^)#:\s]+)(?:#[^)]*)?\)")


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def as_python(code: str) -> str:
    """A cell without IPython: `!command` through the shell, whose failure ends the program."""
    prefix = "import subprocess; subprocess.run("
    return re.sub(r"^!(.*)$", lambda match: f"{prefix}f{match[1]!r}, shell=True, check=True)", code, flags=re.M)


def test_a_shell_line_takes_names_from_the_cells_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", as_python('word = "small"\n!echo a {word} {"" if word else "b"} "c d"')],
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["a", "small", "c", "d"], done.stderr
    assert subprocess.run([sys.executable, "-c", as_python("!false")], capture_output=True).returncode != 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_holds_no_output(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in names)
    for cell in notebook["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        assert set(cell) == (keys if cell["cell_type"] == "markdown" else keys | {"outputs", "execution_count"})
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
    for cell in cells(path, "markdown"):
        for link in LINK.finditer(source(cell)):
            assert (path.parent / link["path"]).exists(), link["path"]
    assert "has not been run on a GPU" in source(notebook["cells"][0])


@pytest.mark.slow
@pytest.mark.skipif(not (BIN / "hf-arch").exists(), reason="the package is not installed in this environment")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_run_in_order_on_a_cpu(path: Path, tmp_path: Path) -> None:
    program = "\n".join(
        as_python(source(cell)) for cell in cells(path, "code") if "not-run" not in cell["metadata"].get("tags", [])
    )
    env = os.environ | {"PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]), "PYTHONPATH": str(ROOT)}
    env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "validation loss" in done.stdout and "parameters" in done.stdout.splitlines()[-1]
