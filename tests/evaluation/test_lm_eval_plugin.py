"""lm_eval learns of our models by one import; nothing of ours waits in `import torch` or in lm_eval."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(program: str, *folders: Path) -> str:
    """What a program prints that finds the package, and before it whatever lies in `folders`."""
    path = os.pathsep.join(map(str, [*folders, ROOT]))
    # Entry points of torch that an older installation of ours may have left in this environment stay out of it.
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_the_package_declares_nothing_that_torch_loads() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "entry-points" not in project["project"]
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]) == {"recipes"}


@pytest.mark.rest
def test_importing_torch_and_our_package_leaves_no_finder_but_that_of_the_auto_classes() -> None:
    program = (
        "import sys; before = len(sys.meta_path)\nimport torch, hf_arch\n"
        "print([type(finder).__name__ for finder in sys.meta_path[: len(sys.meta_path) - before]])"
    )
    assert python(program) in ("['_TableFinder']", "[]")


@pytest.fixture
def harness(tmp_path: Path) -> Path:
    """A folder with a stand-in for lm_eval: a registry, the class that ours extends, and a command line."""
    files = {
        "__init__.py": "",
        "api/__init__.py": "",
        "api/registry.py": (
            "models = {}\n"
            "def register_model(name):\n    def enter(cls):\n        models[name] = cls\n        return cls\n"
            "    return enter\n"
        ),
        "models/__init__.py": "",
        "models/huggingface.py": "class HFLM: pass\n",
        "models/utils_hf.py": "def get_dtype(name): return name\n",
        "tasks/__init__.py": "",
        "tasks/_index.py": "class Kind: GROUP = 'group'\n",
        "__main__.py": (
            "import sys\nfrom lm_eval.api.registry import models\n"
            "def cli_evaluate(): print(models[sys.argv[sys.argv.index('--model') + 1]].__name__)\n"
        ),
    }
    for name, text in files.items():
        path = tmp_path / "lm_eval" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.rest
def test_one_import_enters_the_model_and_the_module_is_lm_evals_command_line(harness: Path) -> None:
    program = (
        "import runpy, sys, hf_arch.lm_eval\nfrom lm_eval.api.registry import models\n"
        "assert models['hf_arch'].__name__ == 'ArchLM'\nsys.argv = ['lm_eval', '--model', 'hf_arch']\n"
        "del sys.modules['hf_arch.lm_eval']\nrunpy.run_module('hf_arch.lm_eval', run_name='__main__')"
    )
    assert python(program, harness) == "ArchLM"
