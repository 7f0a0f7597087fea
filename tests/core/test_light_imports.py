"""The processes of `hf-arch` import transformers without what they do not need, and find in it what anyone finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from transformers.utils import import_utils

from hf_arch.core import light_imports

ROOT = Path(__file__).parents[2]
FIND = import_utils.define_import_structure
MODELS = Path(str(import_utils.__file__)).parents[1] / "models"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A module like transformers' own, with an empty cache."""
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path))
    monkeypatch.setattr(light_imports, "_names", None)
    monkeypatch.setattr(sys, "argv", ["hf-arch", "train", "recipe.yaml"])
    module = ModuleType(light_imports.NAMES_MODULE)
    module.__file__ = import_utils.__file__
    module.define_import_structure = FIND  # type: ignore[attr-defined]
    light_imports._keep_names(module)
    return module


def test_what_was_kept_is_what_transformers_finds(
    names: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = FIND(MODELS), FIND(MODELS, "models")
    places = (str(MODELS / "__init__.py"), MODELS)  # as transformers asks
    for _ in range(2):
        assert (
            names.define_import_structure(places[0]),
            names.define_import_structure(places[1], "models"),
        ) == expected
        assert len(list(tmp_path.rglob("*.json"))) == 1
        monkeypatch.setattr(light_imports, "_names", None)
    held = names.define_import_structure(MODELS)
    held[frozenset()].clear()  # transformers adds to what it gets
    assert names.define_import_structure(MODELS) == expected[0]
    assert names.define_import_structure(MODELS / "llama") == FIND(MODELS / "llama")


def test_a_damaged_file_is_none(names: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names.define_import_structure(MODELS)
    (file,) = tmp_path.rglob("*.json")
    whole = file.read_text()
    for text in ("", whole[:100], "{}", '[["a", 1]]', json.dumps([[["torch"], ["gpt2"]]])):
        file.write_text(text)
        monkeypatch.setattr(light_imports, "_names", None)
        assert names.define_import_structure(MODELS) == FIND(MODELS), text
        assert file.read_text() == whole


@pytest.mark.parametrize("arguments", [["train", "recipe.yaml", "--dry-run"], ["plan", "recipe.yaml"], []])
def test_a_look_writes_nothing(
    names: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hf-arch", *arguments])
    names.define_import_structure(MODELS)
    assert list(tmp_path.iterdir()) == []


def test_any_change_of_a_file_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    (folder / "gpt2" / "__pycache__").mkdir(parents=True)
    (tmp_path / "utils").mkdir()
    finder, file = tmp_path / "utils" / "import_utils.py", folder / "gpt2" / "modeling_gpt2.py"
    for made in (finder, file):
        made.write_text("a = 1\n")
    states = [light_imports._state(folder)]

    def state_differs() -> bool:
        states.append(light_imports._state(folder))
        return states[-1] not in states[:-1]

    (folder / "gpt2" / "__pycache__" / "modeling_gpt2.pyc").write_text("")
    assert not state_differs()
    file.write_text("a = 22\n")
    assert state_differs()
    os.utime(file, ns=(1, 1))
    assert state_differs()
    finder.write_text("a = 22\n")
    assert state_differs()
    (folder / "new.py").touch()
    assert state_differs()
    (folder / "new.py").rename(folder / "newer.py")
    assert state_differs()


@pytest.mark.rest
def test_stand_ins_import_the_library_when_it_is_used() -> None:
    code = """
import sys
from hf_arch.core.light_imports import lighten_imports
lighten_imports()
import transformers.trainer
from transformers.loss import loss_for_object_detection
from transformers.utils import is_datasets_available, is_scipy_available
assert is_datasets_available() and is_scipy_available()
for name in ("datasets", "pandas", "scipy.optimize"):
    assert name not in sys.modules, name
assert not isinstance([1], transformers.trainer.datasets.Dataset)
assert "datasets" not in sys.modules
rows, columns = loss_for_object_detection.linear_sum_assignment([[4, 1, 3], [2, 0, 5], [3, 2, 2]])
assert columns.tolist() == [1, 0, 2] and "scipy.optimize" in sys.modules
assert transformers.trainer.datasets.__name__ == "datasets" and transformers.trainer.datasets.load_dataset
import datasets
assert transformers.trainer.datasets.Dataset is datasets.Dataset
assert isinstance(datasets.Dataset.from_list([{"a": 1}]), transformers.trainer.datasets.Dataset)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


def test_a_program_that_imports_hf_arch_is_not_touched(fresh) -> None:
    code = """
import sys
import hf_arch.api
import hf_arch.training.run
print([finder for finder in sys.meta_path if "light_imports" in type(finder).__module__])
"""
    assert fresh(code).stdout == "[]\n"
