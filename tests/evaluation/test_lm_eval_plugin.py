"""What runs at every import of torch where the package is installed: next to nothing, and it fails in nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "hf_arch/evaluation/plugin"


def python(program: str, *folders: Path) -> str:
    """What a program prints that finds the module, and before it whatever lies in `folders`."""
    path = os.pathsep.join(map(str, [*folders, PLUGIN]))
    environment = {**os.environ, "PYTHONPATH": path, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_it_is_what_the_package_declares_and_ships() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["torch.backends"] == {"hf_arch": "hf_arch_lm_eval:autoload"}
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert {ROOT / source: name for source, name in shipped.items()} == {
        PLUGIN / "hf_arch_lm_eval.py": "hf_arch_lm_eval.py"
    }


def test_it_imports_nothing_that_torch_has_not() -> None:
    program = (
        "import sys, torch\nbefore = set(sys.modules)\nimport hf_arch_lm_eval\nhf_arch_lm_eval.autoload()\n"
        "hf_arch_lm_eval.autoload()\nwaiting = [type(finder).__name__ for finder in sys.meta_path]\n"
        "print(set(sys.modules) - before, waiting.count('_WaitForModels'))"
    )
    assert python(program) == "{'hf_arch_lm_eval'} 1"


@pytest.fixture
def harness(tmp_path: Path) -> Path:
    """A folder with a stand-in for lm_eval: as there, models are loaded once one is asked for and none is known."""
    for file in ("lm_eval/__init__.py", "lm_eval/api/__init__.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("")
    (tmp_path / "lm_eval/api/registry.py").write_text(
        "class Models(dict):\n    def register(self, name, target): self[name] = target\n"
        "model_registry = Models()\n"
        "def get_model(name):\n    if not model_registry:\n        import lm_eval.models\n"
        "    return model_registry[name]\n"
    )
    (tmp_path / "lm_eval/models.py").write_text(
        "from lm_eval.api.registry import model_registry\nmodel_registry.register('hf', target='HFLM')\n__all__ = []\n"
    )
    return tmp_path


def test_the_name_is_entered_beside_those_that_lm_eval_has(harness: Path) -> None:
    program = (
        "import hf_arch_lm_eval as plugin; plugin.autoload()\n"
        "from lm_eval.api.registry import get_model\n"
        "assert get_model('hf') == 'HFLM'\n"
        "import inspect, lm_eval.models\n"
        "assert lm_eval.models.__spec__.loader is lm_eval.models.__loader__ and inspect.getsource(lm_eval.models)\n"
        "print(get_model('hf_arch'))"
    )
    assert python(program, harness) == "hf_arch.evaluation.lm_eval:ArchLM"
    assert python(program.replace("autoload()", "MODEL; import lm_eval.models; plugin.autoload()"), harness)


@pytest.mark.parametrize("text", ["", "model_registry = {}", "model_registry = None"])
def test_a_registry_of_another_kind_is_a_warning(harness: Path, text: str) -> None:
    (harness / "lm_eval/api/registry.py").write_text(text)
    (harness / "lm_eval/models.py").write_text("__all__ = []")
    program = (
        "import warnings, hf_arch_lm_eval as plugin; plugin.autoload()\n"
        "with warnings.catch_warnings(record=True) as said: import lm_eval.models\n"
        "plugin.autoload()  # as where torch comes after lm_eval\n"
        "print(said[0].message)"
    )
    assert python(program, harness).startswith("`--model hf_arch` is not known to this lm_eval")
