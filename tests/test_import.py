"""`import hf_arch` is cheap and harmless: it loads no torch and no transformers, opens no connection, says nothing."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.synthetic import write_run
from tests.fresh import Fresh

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "datasets", "evaluate", "accelerate", "pandas", "matplotlib", "scipy", "statsmodels"}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=240)


SHOW_MODULES = "import json, sys\nprint(json.dumps(sorted(sys.modules)))"


def modules_in(done: subprocess.CompletedProcess[str]) -> set[str]:
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_loads_nothing_heavy():
    assert not modules_in(python("-c", f"import hf_arch\n{SHOW_MODULES}")) & HEAVY


def test_the_auto_classes_know_every_architecture(fresh: Fresh):
    """Whatever is imported first: see test_import_order.py."""
    code = """
import socket

def refuse(*args, **kwargs):
    raise AssertionError("registration opens a connection")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from transformers import AutoModelForCausalLM, AutoConfig
import hf_arch
for name in hf_arch.list_architectures():
    config = AutoConfig.for_model("hfa_" + name)
    assert AutoModelForCausalLM._model_mapping[type(config)]
"""
    loaded = modules_in(fresh(f"{code}\n{SHOW_MODULES}"))
    assert "torch._inductor.compile_fx" not in loaded
    assert not loaded & {
        f"hf_arch.{layer}" for layer in ("data", "training", "experiments", "evaluation", "hub", "cli")
    }


def test_help_and_completion_show_what_is_public(fresh: Fresh):
    code = """
import hf_arch, pydoc
assert set(hf_arch.__all__) <= set(dir(hf_arch))
page = pydoc.plain(pydoc.render_doc(hf_arch))
for name in hf_arch.__all__:
    value = getattr(hf_arch, name)
    assert not callable(value) or f"{name}(" in page and value.__doc__.split("\\n")[0] in page, name
"""
    done = fresh(code)
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


def test_the_list_of_architectures_needs_no_torch_and_is_that_of_the_registry() -> None:
    from hf_arch.core.registry import ARCHITECTURES

    code = """
import json, sys
sys.argv = ["hf-arch", "list", "--json"]
from hf_arch.cli import main
try:
    main()
finally:
    print(json.dumps(sorted({"torch", "transformers"} & set(sys.modules))))
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    *listed, loaded = done.stdout.splitlines()
    assert json.loads(loaded) == []
    entries = [ARCHITECTURES.get(name) for name in ARCHITECTURES]
    assert json.loads("\n".join(listed)) == [
        {"name": entry.name, "summary": entry.summary, "paper": entry.paper} for entry in entries
    ]


def test_runs_are_compared_without_torch(tmp_path: Path) -> None:
    for name in ("gla", "llama"):
        for seed in (1, 2):
            write_run(tmp_path, name, seed, loss=1.5 + seed / 10)
    code = f"""
import sys
from hf_arch.analysis.compare import compare_runs
assert compare_runs({str(tmp_path)!r}).headline
print(sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_a_model_is_built_without_trainer_which_knows_its_parameters_later(fresh: Fresh) -> None:
    code = """
import hf_arch, sys, torch
from transformers import AutoModelForCausalLM
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("mamba"))
print("transformers.trainer" in sys.modules)
from transformers import Trainer
print(Trainer.get_decay_parameter_names.exempts_by_module, hasattr(Trainer.get_decay_parameter_names, "__wrapped__"))
"""
    done = fresh(code)
    assert [line for line in done.stdout.splitlines() if "W" not in line] == ["False", "True True"], done.stderr


def test_a_second_look_at_an_architecture_needs_no_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says the same; a damaged file, overrides or a plugin are looked at anew."""
    from hf_arch.cli import app

    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path))
    words = ["info", "llama", "--json"]
    code = f"""
import json, sys
sys.argv = ["hf-arch", *{words}]
from hf_arch.cli import main
try:
    main()
finally:
    print(json.dumps("torch" in sys.modules))
"""

    def look(*more: str) -> str:
        with pytest.raises(SystemExit):
            app([*words, *more])
        return capsys.readouterr().out

    first = look()
    (kept,) = (tmp_path / "reports").iterdir()
    whole = kept.read_text()
    *second, loaded = python("-c", code).stdout.splitlines()
    assert loaded == "false" and second == first.splitlines()
    assert json.loads(first)["architecture"] == "llama"
    assert look("num_hidden_layers=1") != first and kept.read_text() == whole
    kept.write_text("{")
    assert look() == first and kept.read_text() == whole


@pytest.mark.parametrize("look", [["info", "gla"], pytest.param(["list", "--components"], marks=pytest.mark.slow)])
def test_a_first_look_searches_no_cycles_among_what_it_imports(look: list[str], tmp_path: Path) -> None:
    """Neither while it imports nor at its end, which took a third of its processor time."""
    code = f"""
import gc, sys
before = sum(each["collections"] for each in gc.get_stats())
sys.argv = ["hf-arch", *{look}]
from hf_arch.cli import main
try:
    main()
finally:
    searched = sum(each["collections"] for each in gc.get_stats()) - before
    print(gc.isenabled(), gc.get_freeze_count() > 100_000, searched < 200, "torch" in sys.modules, searched)
"""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_ARCH_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240)
    assert done.stdout.splitlines()[-1].split()[:4] == ["True"] * 4, done.stdout + done.stderr
