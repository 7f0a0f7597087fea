"""Sets of real trainings that are hurt: killed runners, killed runs, two runners at once, runs that fail."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from hf_arch.runs.suite import find_runs
from tests.signals import hear_interrupts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
FAULTS = '''
"""GLA that takes its time, or goes wrong: by an exception, out of memory (beyond RLIMIT_AS), or by NaN."""

import resource
import time
from typing import Literal

import torch

from hf_arch.layers.mixers.gla import GatedLinearAttention, GLAOptions
from hf_arch.core.options import options
from hf_arch.core.registry import MIXERS


@options
class FaultyOptions(GLAOptions):
    fault: Literal["slow", "raise", "memory", "nan"] = "slow"


@MIXERS.register("faulty")
class Faulty(GatedLinearAttention):
    Options = FaultyOptions

    def mix(self, x, layout, state, **context):
        out = super().mix(x, layout, state, **context)
        if self.options.fault == "slow":
            time.sleep(0.05)
            return out
        if self.options.fault == "raise":
            raise RuntimeError("the mixer is broken")
        if self.options.fault == "memory":
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
            return out + torch.ones(2**30)[0]
        return out * float("nan")
'''


def faulty(fault: str) -> dict[str, Any]:
    return {"architecture": "gla", "plugins": ["faults.py"], "mixer": {"type": "faulty", "fault": fault}}


def write_recipe(folder: Path, runs: dict[str, dict[str, Any]], steps: int) -> Path:
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "seven", "wizards", "box"]
    text = "\n\n".join(" ".join(words[(i * j) % len(words)] for j in range(1, 60)) for i in range(1, 200))
    (folder / "text.txt").write_text(text)
    (folder / "faults.py").write_text(FAULTS)
    recipe = {
        "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
        "data": {"corpus": str(folder / "text.txt"), "tokenizer": "char", "sequence_length": 32},
        "training": {
            "max_steps": steps, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 10,
            "eval_steps": 40, "save_steps": 10, "seed": 1,
        },
        "evaluation": {"sequences": 8, "final_sequences": 8, "speed": False, "new_tokens": 4},
        "experiment": {"name": "hurt", "hypothesis": "It survives.", "runs": runs},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(recipe: Path, results: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "hf_arch", "run", str(recipe), "--results-dir", str(results)],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=hear_interrupts,
    )  # fmt: skip


def finish(runner: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr."""
    _out, err = runner.communicate(timeout=600)
    return runner.returncode, err


def wait_for(condition: Callable[[], Any], runner: subprocess.Popen[str]) -> Any:
    end = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        assert runner.poll() is None, finish(runner)
        time.sleep(0.02)
    return found


def checkpoint(results: Path, name: str) -> bool:
    return any(results.glob(f"{name}_*/checkpoints/checkpoint-*/trainer_state.json"))


def numbers(results: Path) -> dict[str, tuple[Any, ...]]:
    """What of each run must not depend on how it was disturbed."""
    keys = ("final_train_loss", "final_val_loss", "bits_per_byte", "tokens_seen", "sample")
    return {
        run.name: (run.status, *map(run.to_results().get, keys), *losses(run.metrics)) for run in find_runs(results)
    }


def losses(metrics: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(row["step"], row.get("loss"), row.get("val_loss"), row.get("grad_norm")) for row in metrics]


def trainings(err: str) -> list[str]:
    """Names in the order in which they were started or resumed, as the runner told it."""
    return re.findall(r"^(\w+): (?:starts|resumes)$", err, flags=re.MULTILINE)


def test_a_killed_runner_and_a_killed_run_change_no_number(tmp_path: Path) -> None:
    runs = {name: {"model": faulty("slow"), "training.seed": seed} for seed, name in enumerate(("first", "second"))}
    recipe = write_recipe(tmp_path, runs, steps=120)
    undisturbed, hurt = tmp_path / "undisturbed", tmp_path / "hurt"
    assert finish(start(recipe, undisturbed))[0] == 0

    runner = start(recipe, hurt)
    wait_for(lambda: checkpoint(hurt, "first"), runner)
    children = psutil.Process(runner.pid).children(recursive=True)
    runner.send_signal(signal.SIGKILL)
    told = [finish(runner)[1]]
    _gone, alive = psutil.wait_procs(children, timeout=60)
    assert not alive, "a run trains on without its runner"
    assert {run.status for run in find_runs(hurt)} == {"running"}

    runner = start(recipe, hurt)
    wait_for(lambda: checkpoint(hurt, "second"), runner)
    (run,) = (child for child in psutil.Process(runner.pid).children() if "train" in child.cmdline())
    run.send_signal(signal.SIGKILL)
    code, err = finish(runner)
    told.append(err)
    assert code == 0
    assert "second: failed: killed by SIGKILL" in err and "tried once more" in err
    assert [trainings(text) for text in told] == [["first"], ["first", "second", "second"]]
    assert numbers(hurt) == numbers(undisturbed)

    before = {path: path.stat().st_mtime_ns for path in hurt.glob("*/results.json")}
    code, err = finish(start(recipe, hurt))
    assert code == 0 and trainings(err) == [] and err.count("finished already") == 2
    assert {path: path.stat().st_mtime_ns for path in hurt.glob("*/results.json")} == before


def test_two_runners_on_one_folder_train_every_run_once(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, {f"run{i}": {"model.architecture": "llama", "training.seed": i} for i in range(4)}, 40
    )
    runners = [start(recipe, tmp_path / "results") for _ in range(2)]
    ended = [finish(runner) for runner in runners]
    assert [code for code, _err in ended] == [0, 0]
    told = [trainings(err) for _code, err in ended]
    assert sorted(told[0] + told[1]) == ["run0", "run1", "run2", "run3"]
    assert all(told), "one of them did nothing"
    assert [run.status for run in find_runs(tmp_path / "results")] == ["completed"] * 4


def test_failures_of_each_kind_are_named_and_end_the_set_with_1(tmp_path: Path) -> None:
    runs = {fault: {"model": faulty(fault)} for fault in ("raise", "memory", "nan")}
    recipe = write_recipe(tmp_path, {**runs, "sound": {"model.architecture": "gla"}}, steps=40)
    results = tmp_path / "results"
    code, err = finish(start(recipe, results))
    assert code == 1
    found = {run.name: run for run in find_runs(results)}
    assert {name: run.status for name, run in found.items()} == {
        "raise": "failed", "memory": "failed", "nan": "failed", "sound": "completed",
    }  # fmt: skip
    words = {"raise": "the mixer is broken", "memory": "memory", "nan": "nan"}
    page = (results / "report.html").read_text()
    suite = json.loads((results / "experiment_suite_results.json").read_text())
    assert suite["status"] == {"failed": 3, "completed": 1}
    for name, word in words.items():
        assert word in found[name].provenance["exit_reason"], name
        (told,) = re.findall(rf"^failed: \S*/{name}_\S*: (.*)$", err, flags=re.MULTILINE)
        assert word in told
        assert re.search(rf"\b{name}\b[^<]*{word}", page), f"the report does not say why {name} failed"
