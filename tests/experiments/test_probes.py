"""Probes: they are learned where they can be, scored honestly, and their runs are compared like any others."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import hf_arch
from hf_arch.cli import app
from hf_arch.cli.probe import probe_recipe
from hf_arch.core.errors import ConfigError
from hf_arch.core.failures import TrainingError
from hf_arch.data.probes import PROBES
from hf_arch.experiments import load
from hf_arch.experiments.planning.plan import plan_runs
from hf_arch.recipe.recipe import Recipe, read_recipe
from hf_arch.training.probe_run import run_probe
from hf_arch.training.probes import ProbeModel, ProbeTraining, learn_probe, score_probe


def recipe(architecture: str, task: str, *overrides: str, **probe: Any) -> Recipe:
    values = probe_recipe([architecture], task, "cpu", 32, 1, [1e-2], 1, None)
    values["probe"].update(probe)
    return plan_runs(read_recipe(values, overrides)).runs[0].recipe


def model(architecture: str, task: str, **options: Any) -> tuple[Any, Any, Any]:
    """A model with train and test rows."""
    probe = PROBES[task]
    train, test = (probe.data(split, 0, probe.cpu, **options) for split in ("train", "test"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": train.vocab_size}
    config = hf_arch.config_from_dict({"architecture": architecture, **sizes, "max_position_embeddings": 64})
    return hf_arch.core.registry.ARCHITECTURES.get(architecture).causal_lm(config), train, test


def test_facts_are_memorised() -> None:
    learner, train, test = model("llama", "memorization", vocab_size=16, sequence_length=8)
    learned = learn_probe(learner, train, test, ProbeTraining(max_steps=200, learning_rate=1e-2, eval_steps=20))
    assert learned.best.accuracy >= 0.99
    assert learned.steps < 200  # it ends once it is solved
    assert learned.scores[-1] == learned.best


def test_a_row_is_read_from_the_last_state_alone() -> None:
    learner, train, test = model("gla", "compression", vocab_size=4, sequence_length=4, examples=256)
    assert train.from_last_state
    reader = ProbeModel(learner, train)
    logits, answers = reader(test.inputs[:8], test.labels[:8])
    assert logits.shape == (8 * 4, train.vocab_size) and torch.equal(answers, test.labels[:8].flatten())
    learned = learn_probe(learner, train, test, ProbeTraining(max_steps=300, learning_rate=1e-2, eval_steps=50))
    assert learned.best.accuracy > 0.9


def test_a_score_is_the_share_of_right_answers() -> None:
    learner, train, test = model("llama", "mqar")
    score = score_probe(ProbeModel(learner, train), test, 0, torch.device("cpu"))
    with torch.no_grad():
        logits = learner(test.inputs).logits
    asked = test.labels != -100
    assert score.accuracy == pytest.approx((logits.argmax(-1) == test.labels)[asked].float().mean().item())
    assert score.loss == pytest.approx(math.log(train.vocab_size), rel=0.1)


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    learner, train, test = model("llama", "parity")
    learner.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(TrainingError, match="the loss became nan by step 2"):
        learn_probe(learner, train, test, ProbeTraining(max_steps=2, eval_steps=2))


def test_a_probe_run_has_what_every_run_has(tmp_path: Path) -> None:
    results = run_probe(recipe("gla", "parity", "training.max_steps=4"), tmp_path, quiet=True)
    assert results["status"] == "completed"
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert 0 <= results["accuracy"] <= 1 and results["state_bytes"] > 0 and results["tokens_seen"] == 4 * 64 * 32
    comparison = load(tmp_path)
    assert comparison.metric == "accuracy" and not comparison.lower_is_better
    assert comparison.frame()["accuracy"][0] == results["accuracy"]
    assert hf_arch.core.registry.ARCHITECTURES.get("gla").causal_lm.from_pretrained(tmp_path / "model") is not None


def test_the_same_seed_gives_the_same_rows_and_weights(tmp_path: Path) -> None:
    results = [
        run_probe(recipe("gla", "parity", "training.max_steps=3", f"experiment.seeds=[{seed}]"), tmp_path / name, True)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert results[0]["final_val_loss"] == results[1]["final_val_loss"] != results[2]["final_val_loss"]
    fingerprints = [(entry["data_fingerprint"], entry["order_fingerprint"]) for entry in results]
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0][0] == fingerprints[2][0] and fingerprints[0][1] != fingerprints[2][1]


@pytest.mark.parametrize("task", PROBES)
@pytest.mark.parametrize("setting", ["cpu", "paper"])
def test_every_probe_can_be_planned(task: str, setting: str) -> None:
    planned = plan_runs(read_recipe(probe_recipe(["llama", "mamba"], task, setting, 64, 2, [1e-3, 1e-2], 2, "state")))
    assert len(planned.runs) == 8
    assert all(abs(run.matched.residual) <= 0.02 for run in planned.runs if run.matched)


@pytest.mark.parametrize(
    ("section", "changes", "expected"),
    [
        ("probe", {"task": "mqra"}, "nearest: 'mqar'"),
        ("probe", {"options": {"num_pair": 3}}, "nearest: 'num_pairs'"),
        ("probe", {"options": {"num_pairs": 90}}, "sequence_length"),
        ("probe", {"stop_accuracy": 2.0}, "probe.stop_accuracy"),
        ("probe", {"setting": "gpu"}, "nearest: 'cpu'"),
        ("training", {"gradient_accumulation_steps": 2}, "not for a probe"),
        ("data", {"corpus": "shakespeare"}, "leave 'data' out"),
        ("model", {"vocab_size": 3}, "too small for the probe"),
    ],
)
def test_a_mistake_is_one_line(section: str, changes: dict[str, Any], expected: str) -> None:
    values = probe_recipe(["llama"], "mqar", "cpu", 64, 2, [1e-3], 1, None)
    values[section] = {**values.get(section, {}), **changes}
    with pytest.raises(ConfigError) as caught:
        plan_runs(read_recipe(values))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["lama", "--task", "mqar"], "nearest: 'llama'"),
        (["llama", "--task", "mqra"], "nearest: 'mqar'"),
        (["model.hidden_size=3", "--task", "mqar"], "ARCH: none given"),
        (["llama", "--task", "mqar", "model.hiden_size=8"], "nearest: 'hidden_size'"),
        (["llama"], "--task"),
    ],
)
def test_a_mistake_on_the_command_line_writes_nothing(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["probe", *arguments, "--results-dir", str(tmp_path / "results")])
    assert done.exit_code == 2
    assert expected in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()
