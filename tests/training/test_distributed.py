"""Two processes over gloo train what one process trains: the same losses to four digits, whatever is sharded.

Each fixture is one launch that trains several runs, since starting costs more than training here.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_arch.experiments.execution.process import launcher
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import read_metrics
from hf_arch.training.run import run_training
from tests.training.distributed_jobs import cut
from tests.training.tiny import recipe_values

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]
TO_FOUR_DIGITS = 1e-4
# Every process draws its own dropout, and the load-balancing loss of a mixture is one of each process's own batch.
NO_DROPOUT = {"embedding_dropout": 0.0, "residual_dropout": 0.0, "attention_dropout": 0.0}
EXPERTS = {"type": "moe", "num_experts": 4, "intermediate_size": 24, "aux_loss_coef": 0.0, "score_bias": True}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"architecture": "gpt2", **NO_DROPOUT},
    "gla": {"architecture": "gla"},
    "mamba": {"architecture": "mamba"},
    "moe": {"architecture": "moe", "ffn": EXPERTS},
}


def recipe(text: Path, model: dict[str, Any], processes: int = 1, **training: Any) -> dict[str, Any]:
    """A run whose batch of four rows is shared out over so many processes."""
    batch = {"per_device_train_batch_size": 4 // processes}
    return recipe_values(text, model={**model, "intermediate_size": None}, training={**batch, **training})


def isolated(text: Path, processes: int = 1) -> dict[str, Any]:
    """Documents do not see each other, so that rows count different numbers of tokens; each step adds two up."""
    values = recipe(text, {}, processes)
    values["data"]["isolate_documents"] = True
    values["training"] |= {"per_device_train_batch_size": 2 // processes, "gradient_accumulation_steps": 2}
    return values


def launch(jobs: list[dict[str, Any]], folder: Path, **environment: str) -> None:
    listed = folder / "jobs.json"
    listed.write_text(json.dumps(jobs))
    command = [*launcher(2), "-m", "tests.training.distributed_jobs", str(listed)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = str(tmp_path_factory.getbasetemp() / "cache")
    return {"HF_ARCH_CACHE": cache, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """The same runs by one process, in this one."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for name, model in MODELS.items():
            run_training(Recipe.from_dict(recipe(text, model)), folder / name, quiet=True)
        run_training(Recipe.from_dict(isolated(text)), folder / "isolated", quiet=True)
    return folder


@pytest.fixture(scope="module")
def ddp(text: Path, alone: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    cut(alone / "gpt2", folder / "taken over", 3)
    shared = recipe(text, MODELS["gpt2"], 2, zero_redundancy=True)
    jobs = [
        *({"recipe": recipe(text, model, 2), "folder": str(folder / name)} for name, model in MODELS.items()),
        {"recipe": isolated(text, 2), "folder": str(folder / "isolated")},
        {"recipe": recipe(text, MODELS["gpt2"], 2), "folder": str(folder / "taken over"), "resume": True},
        {"cut": [str(folder / "moe"), str(folder / "moe resumed"), 3]},
        {"recipe": recipe(text, MODELS["moe"], 2), "folder": str(folder / "moe resumed"), "resume": True},
        {"recipe": shared, "folder": str(folder / "zero")},
        {"cut": [str(folder / "zero"), str(folder / "zero resumed"), 3]},
        {"recipe": shared, "folder": str(folder / "zero resumed"), "resume": True},
    ]
    launch(jobs, folder, **environment)
    return folder


@pytest.fixture(scope="module")
def fsdp(text: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    jobs = [
        *({"recipe": recipe(text, model, 2), "folder": str(folder / name)} for name, model in MODELS.items()),
        {"cut": [str(folder / "moe"), str(folder / "moe resumed"), 3]},
        {"recipe": recipe(text, MODELS["moe"], 2), "folder": str(folder / "moe resumed"), "resume": True},
    ]
    asked = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "HF_ARCH_CPU_FSDP": "1",
    }
    launch(jobs, folder, **environment, **asked)
    return folder


def losses(run: Path) -> list[float]:
    """Of every training step and every evaluation."""
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    return [row.get("loss", row.get("val_loss")) for row in rows]


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def assert_same_run(run: Path, other: Path) -> None:
    """Equal losses, and a saved model that loads and gives the validation loss of the other run."""
    assert losses(run) == pytest.approx(losses(other), abs=TO_FOUR_DIGITS)
    left, right = results(run), results(other)
    assert left["status"] == "completed"
    assert left["final_val_loss"] == pytest.approx(right["final_val_loss"], abs=TO_FOUR_DIGITS)
    assert (left["tokens_seen"], left["val_tokens"]) == (right["tokens_seen"], right["val_tokens"])
    models = [AutoModelForCausalLM.from_pretrained(folder / "model").eval() for folder in (run, other)]
    ids = torch.arange(32)[None]
    with torch.no_grad():
        mine, theirs = (model(ids, labels=ids).loss.item() for model in models)
    assert mine == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("name", [*MODELS, "isolated"])
def test_ddp_trains_as_one_process_does(ddp: Path, alone: Path, name: str) -> None:
    assert_same_run(ddp / name, alone / name)
    launched = results(ddp / name)["launch"]
    assert (launched["processes"], launched["strategy"], launched["backend"]) == (2, "ddp", "gloo")
    assert {row["processes"] for row in read_metrics(ddp / name / "metrics.jsonl") if "loss" in row} == {2}


@pytest.mark.parametrize("name", MODELS)
def test_fsdp2_trains_as_one_process_does(fsdp: Path, alone: Path, name: str) -> None:
    assert_same_run(fsdp / name, alone / name)
    launched = results(fsdp / name)["launch"]
    assert (launched["processes"], launched["strategy"], launched["backend"]) == (2, "fsdp2", "gloo")
    assert launched["sharded"] == "weights, gradients, optimizer states"
    # What accelerate writes of sharded weights; plain ones would lie in model.safetensors.
    assert (fsdp / name / "checkpoints" / "checkpoint-6" / "pytorch_model_fsdp.bin").is_file()


def test_ddp_resumes_on_its_own_losses(ddp: Path, alone: Path) -> None:
    assert_same_run(ddp / "moe resumed", alone / "moe")


def test_fsdp2_resumes_on_its_own_losses(fsdp: Path, alone: Path) -> None:
    assert_same_run(fsdp / "moe resumed", alone / "moe")


def test_two_processes_take_over_from_one(ddp: Path, alone: Path) -> None:
    assert_same_run(ddp / "taken over", alone / "gpt2")


def test_one_process_takes_over_from_two_that_shared_the_optimizer(
    ddp: Path, alone: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    monkeypatch.setenv("HF_ARCH_CACHE", environment["HF_ARCH_CACHE"])
    cut(ddp / "zero", tmp_path / "run", 3)
    run_training(Recipe.from_dict(recipe(text, MODELS["gpt2"])), tmp_path / "run", resume=True, quiet=True)
    assert_same_run(tmp_path / "run", alone / "gpt2")


def test_a_request_to_stop_is_obeyed_by_all_processes_at_one_step(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    """SIGTERM to the launcher saves a checkpoint, from which one process goes on to the losses of an unbroken run."""
    long = {"max_steps": 150, "save_steps": 1000, "eval_steps": 1000}
    jobs, run = tmp_path / "jobs.json", tmp_path / "run"
    jobs.write_text(json.dumps([{"recipe": recipe(text, MODELS["gpt2"], 2, **long), "folder": str(run)}]))
    command = [*launcher(2), "-m", "tests.training.distributed_jobs", str(jobs)]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.DEVNULL) as launched:
        while launched.poll() is None and len(read_metrics(run / "metrics.jsonl")) < 5:
            time.sleep(0.05)
        launched.terminate()
    assert results(run)["status"] == "interrupted"
    [checkpoint] = (run / "checkpoints").iterdir()
    assert 5 <= int(checkpoint.name.partition("-")[2]) < 150
    monkeypatch.setenv("HF_ARCH_CACHE", environment["HF_ARCH_CACHE"])
    alone = Recipe.from_dict(recipe(text, MODELS["gpt2"], **long))
    run_training(alone, run, resume=True, quiet=True)
    run_training(alone, tmp_path / "whole", quiet=True)
    curves = [
        [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
        for folder in (run, tmp_path / "whole")
    ]
    assert len(curves[0]) == 150
    assert curves[0] == pytest.approx(curves[1], abs=1e-3)  # what sums in another order differ by grows over the steps


@pytest.mark.parametrize("name", ["zero", "zero resumed"])
def test_shared_optimizer_states_change_nothing(ddp: Path, alone: Path, name: str) -> None:
    assert_same_run(ddp / name, alone / "gpt2")
    assert results(ddp / name)["launch"]["sharded"] == "optimizer states"


def test_experts_are_balanced_over_all_processes(ddp: Path, fsdp: Path, alone: Path) -> None:
    """The biases count the tokens of every process: a sign of the load, so they agree exactly."""
    biases = [
        [
            module.score_bias
            for module in AutoModelForCausalLM.from_pretrained(folder / "moe" / "model").modules()
            if getattr(module, "score_bias", None) is not None
        ]
        for folder in (alone, ddp, fsdp)
    ]
    assert len(biases[0]) == 2 and all(bias.abs().sum() > 0 for bias in biases[0])
    for others in biases[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(biases[0], others, strict=True))
