"""`hf-arch with`: our model types are known to other libraries' commands, and to the processes that they start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.cli.with_command import HOOK, find_program, hooked_environment
from hf_arch.core.errors import ConfigError

ROOT = Path(__file__).parents[1]
LOAD = "import sys; from transformers import AutoModelForCausalLM as A; print(type(A.from_pretrained(sys.argv[1])))"
CHILD = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {LOAD!r}, sys.argv[1]]).returncode)"


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    whole = [sys.executable, "-m", "hf_arch", "with", *command]
    return subprocess.run(whole, env=given, capture_output=True, text=True, timeout=250, check=False)


def test_a_command_and_its_children_know_our_models(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(hf_arch.tiny_config("gla")).save_pretrained(tmp_path)
    done = run("python", "-c", CHILD, str(tmp_path))
    assert done.returncode == 0 and "HfaGLAForCausalLM" in done.stdout, done.stderr[-2000:]


@pytest.mark.rest
def test_options_and_the_exit_code_are_the_commands_own(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os.environ['OWN'] = 'here'")
    program = "import os, sys; print(sys.argv[1:], os.environ['OWN']); sys.exit(7)"
    done = run("python", "-c", program, "--help", "-x=1", PYTHONPATH=os.pathsep.join((str(ROOT), str(tmp_path))))
    assert done.returncode == 7, done.stderr
    assert done.stdout.strip() == "['--help', '-x=1'] here"  # the environment's own sitecustomize ran too


def test_an_unknown_command_is_one_line() -> None:
    with pytest.raises(ConfigError, match="COMMAND: no program 'no_such_command'"):
        find_program("no_such_command")
    done = run("no_such_command")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


def test_the_hook_stands_first_and_once() -> None:
    once = hooked_environment({"PYTHONPATH": "/a", "X": "1"})
    assert once["PYTHONPATH"].split(os.pathsep)[0] == str(HOOK) and once["PYTHONPATH"].endswith("/a")
    assert hooked_environment(once) == once and once["X"] == "1"
