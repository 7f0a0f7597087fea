"""Files that plugins read are found by what they open, and by what they and the recipe name."""

from __future__ import annotations

import hashlib
import json
import sys
from itertools import count
from pathlib import Path

import pytest

from hf_arch.core import plugins
from hf_arch.core.plugin_files import files_read, packages_of, unwatched
from hf_arch.core.plugins import load_plugin

NUMBERS = count()
PLUGIN = """
import json, os, sys
from pathlib import Path
import numpy, PLACED
from NAME_helper import later

FOLDER = Path(__file__).parent
TABLE = json.loads((FOLDER / ("tab" + "le.json")).read_text())
NAMED = "weights.safetensors"

def build(name):
    with open(os.path.join(FOLDER, "data", name), "rb") as file:
        return file.read()

def write(name):
    with open(FOLDER / name, "w") as file:
        file.write("x")
"""
HELPER = """
def later(path):
    return path.read_text()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin with a table, weights, a later file, and a module of a folder on the path."""
    place, elsewhere = tmp_path / "mine", tmp_path / "elsewhere"
    (place / "data").mkdir(parents=True)
    elsewhere.mkdir()
    number = next(NUMBERS)  # one text is one module, wherever it lies
    placed, helper = f"placed_{number}", f"named_{number}"
    (elsewhere / f"{placed}.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(elsewhere))
    (place / "plugin.py").write_text(PLUGIN.replace("PLACED", placed).replace("NAME", helper))
    (place / f"{helper}_helper.py").write_text(HELPER)
    (place / "table.json").write_text(json.dumps({"a": 1}))
    (place / "weights.safetensors").write_bytes(b"w")
    (place / "data" / "late.bin").write_bytes(b"late")
    (place / "unused.txt").write_text("")
    (tmp_path / "given.json").write_text("{}")
    # Worker processes of later tests would load it too, without that path.
    monkeypatch.setattr(plugins, "_plugins", dict(plugins._plugins))
    return place


@pytest.mark.filterwarnings("ignore")
def test_what_a_plugin_opens_and_names_is_found(folder: Path) -> None:
    source = load_plugin(folder / "plugin.py").source
    module = sys.modules[source.module]
    placed = next(iter(name for name in packages_of(source) if name.startswith("placed_")))
    assert set(files_read(source)) == {"table.json", "weights.safetensors", f"{placed}.py"}
    with unwatched():
        module.build("late.bin")
    module.write("unused.txt")
    assert set(files_read(source)) == {"table.json", "weights.safetensors", f"{placed}.py"}
    module.build("late.bin")
    module.later(folder.parent / "given.json")
    found = files_read(source)
    assert found.keys() == {"table.json", "weights.safetensors", f"{placed}.py", "data/late.bin", "given.json"}
    assert found["data/late.bin"].sha256 == hashlib.sha256(b"late").hexdigest() and found["data/late.bin"].below
    assert not found["given.json"].below and found["given.json"].path == folder.parent / "given.json"
    assert packages_of(source) == ["numpy", placed]


@pytest.mark.filterwarnings("ignore")
def test_a_file_is_hashed_as_it_was_read(folder: Path) -> None:
    source = load_plugin(folder / "plugin.py").source
    first = files_read(source)["table.json"].sha256
    (folder / "table.json").write_text("{}")
    assert files_read(source)["table.json"].sha256 == first  # read once, while it was imported
    build = sys.modules[source.module].build
    build("late.bin")
    before = files_read(source)["data/late.bin"].sha256
    (folder / "data" / "late.bin").write_bytes(b"other")
    build("late.bin")
    assert files_read(source)["data/late.bin"].sha256 != before


@pytest.mark.filterwarnings("ignore")
def test_a_file_that_the_recipe_names_is_found(folder: Path) -> None:
    source = load_plugin(folder / "plugin.py").source
    given = str(folder.parent / "given.json")
    assert {"given.json", "unused.txt"} <= files_read(source, [given, "unused.txt", "no such.txt", "x" * 400]).keys()
