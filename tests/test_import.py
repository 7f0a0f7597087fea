"""`import hf_arch` is cheap and harmless: it loads no torch and no transformers, opens no connection, says nothing."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "datasets", "evaluate", "accelerate", "pandas", "matplotlib", "scipy", "statsmodels"}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=240)


def modules_after(statement: str) -> set[str]:
    done = python("-c", f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_loads_nothing_heavy():
    assert not modules_after("import hf_arch") & HEAVY


@pytest.mark.parametrize(
    "statement",
    [
        "import hf_arch; from transformers import AutoModelForCausalLM, AutoConfig",
        "from transformers import AutoModelForCausalLM, AutoConfig; import hf_arch",
    ],
)
def test_the_auto_classes_know_every_architecture_whatever_is_imported_first(statement: str):
    code = f"""
import socket

def refuse(*args, **kwargs):
    raise AssertionError("registration opens a connection")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
{statement}
for name in hf_arch.list_architectures():
    config = AutoConfig.for_model("hfa_" + name)
    assert AutoModelForCausalLM._model_mapping[type(config)]
"""
    loaded = modules_after(code)
    assert "torch._inductor.compile_fx" not in loaded
    assert not loaded & {
        f"hf_arch.{layer}" for layer in ("data", "training", "experiments", "evaluation", "hub", "cli")
    }


def test_help_and_completion_show_what_is_public():
    code = """
import hf_arch, pydoc
assert set(hf_arch.__all__) <= set(dir(hf_arch))
page = pydoc.plain(pydoc.render_doc(hf_arch))
for name in hf_arch.__all__:
    value = getattr(hf_arch, name)
    assert not callable(value) or f"{name}(" in page and value.__doc__.split("\\n")[0] in page, name
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_import_prints_nothing():
    done = python("-c", "import hf_arch")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_help_names_the_commands_within_a_second_of_processor_time():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python("-m", "hf_arch", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    for command in ("list", "info", "train", "run", "generate", "compare", "report"):
        assert command in done.stdout
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 1.0


def test_a_wrong_command_is_told_in_one_line():
    done = python("-m", "hf_arch", "trian")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "trian" in done.stderr
