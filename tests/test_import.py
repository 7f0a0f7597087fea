"""`import hf_arch` is cheap and harmless: no compiler, no network, little more than transformers' own auto classes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=120)


def seconds(statement: str) -> float:
    """Best of three fresh processes, interpreter start included in none of them."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    return min(float(python("-c", code).stdout.split()[-1]) for _ in range(3))


def test_import_opens_no_socket_and_loads_no_compiler():
    code = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError(f"import hf_arch opens a connection: {args}")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import hf_arch
print(json.dumps(sorted(sys.modules)))
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    unwanted = {"torch._inductor.compile_fx", "triton", "datasets", "evaluate", "pandas", "matplotlib", "scipy"}
    unwanted |= {"statsmodels", "hf_arch.training", "hf_arch.experiments", "hf_arch.cli"}
    assert not loaded & unwanted


def test_import_prints_nothing():
    done = python("-W", "error::DeprecationWarning:hf_arch", "-c", "import hf_arch")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_import_costs_little_more_than_the_auto_classes():
    auto = "from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, GenerationMixin"
    assert seconds("import hf_arch") < 1.5 * seconds(auto) + 0.5


def test_module_and_console_script_print_the_same_help():
    module = python("-m", "hf_arch", "--help")
    assert module.returncode == 0, module.stderr
    for command in ("list", "info", "train", "generate", "compare", "report"):
        assert command in module.stdout
