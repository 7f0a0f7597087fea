"""Probes: they are learned where they can be, scored honestly, and their runs are compared like any others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import hf_arch
from hf_arch.cli import app
from hf_arch.cli.probe import probe_recipe
from hf_arch.core.errors import ConfigError
from hf_arch.core.failures import TrainingError
from hf_arch.data.probes import PROBES
from hf_arch.experiments import load
from hf_arch.experiments.planning.plan import plan_runs
from hf_arch.recipe.build import build_config
from hf_arch.recipe.recipe import Recipe, read_recipe
from hf_arch.runs.files import read_metrics
from hf_arch.training.arguments import DEFAULTS, build_arguments
from hf_arch.training.precision import Precision
from hf_arch.training.run import run_training
from hf_arch.training.schedule import rates_of
from hf_arch.training.tasks.probe import ProbeTask, probe_training, stop_accuracy
from hf_arch.training.tasks.probe_schedules import probe_schedule


def recipe(architecture: str, task: str, *overrides: str, **probe: Any) -> Recipe:
    values = probe_recipe([architecture], task, "cpu", 32, 1, [1e-2], 1, None)
    values["probe"].update(probe)
    return plan_runs(read_recipe(values, overrides)).runs[0].recipe


def learn(folder: Path, *arguments: str, **probe: Any) -> dict[str, Any]:
    return run_training(recipe(*arguments, **probe), folder, quiet=True)


def test_facts_are_memorised(tmp_path: Path) -> None:
    steps = ("training.max_steps=200", "training.eval_steps=20", "training.num_train_epochs=9")
    results = learn(tmp_path, "llama", "memorization", *steps, options={"vocab_size": 16, "sequence_length": 8})
    assert results["accuracy"] >= 0.99
    assert results["steps"] < 200 and results["stopped_early"]  # it ends once it is solved
    assert results["accuracy"] == results["best_accuracy"]


@pytest.mark.rest
def test_a_row_is_read_from_the_last_state_alone(tmp_path: Path) -> None:
    rows = {"vocab_size": 4, "sequence_length": 4, "examples": 256}
    asked = recipe("gla", "compression", "training.max_steps=300", "training.eval_steps=50", options=rows)
    task = ProbeTask(asked)
    model = AutoModelForCausalLM.from_config(task.config)
    task.prepare(model)
    assert task.from_last_state
    inputs = task.test.inputs[:8]
    logits = model(inputs, use_cache=False).logits
    assert logits.shape == (8, inputs.shape[1], task.vocab_size)
    state = model.model(inputs).last_hidden_state[:, -1]
    torch.testing.assert_close(logits, model.answer_decoder(state))
    with task.alone(model):
        assert not any("decoder" in name for name in model.state_dict())
        torch.testing.assert_close(model(inputs).logits, model.lm_head(model.model(inputs).last_hidden_state))
    torch.testing.assert_close(model(inputs, use_cache=False).logits, logits)
    assert run_training(asked, tmp_path, quiet=True)["accuracy"] > 0.9
    assert not any("decoder" in name for name in load_file(tmp_path / "model" / "model.safetensors"))


@pytest.mark.parametrize("task", ["mqar", "selective_copying"])
def test_a_score_is_that_of_the_saved_weights(task: str, tmp_path: Path) -> None:
    """Against the definitions; of the macro accuracy class by class, where one that is only guessed has nothing
    right."""
    asked = recipe("llama", task, "training.max_steps=1", "training.per_device_eval_batch_size=100")
    results = run_training(asked, tmp_path, quiet=True)
    test = asked.probe.data("test", 1)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(test.inputs).logits
    asked_for = test.labels != -100
    answers, guesses = test.labels[asked_for], logits.argmax(-1)[asked_for]
    shares = []
    for token in torch.cat([answers, guesses]).unique():
        mine = answers == token
        shares.append((guesses[mine] == token).double().mean().item() if mine.any() else 0.0)
    assert results["accuracy"] == pytest.approx((guesses == answers).double().mean().item(), abs=1e-12)
    assert results["accuracy_macro"] == pytest.approx(sum(shares) / len(shares), abs=1e-12)
    loss = torch.nn.functional.cross_entropy(logits[asked_for], answers).item()
    assert results["final_val_loss"] == pytest.approx(loss, rel=1e-6)


def test_the_final_weights_are_reported_and_the_best_beside_them(tmp_path: Path) -> None:
    """A rate that ruins the model late: the best evaluation is not the last."""
    steps = ("training.max_steps=12", "training.eval_steps=1", "training.learning_rate=0.3")
    results = learn(tmp_path, "gla", "parity", *steps)
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "val_accuracy" in row]
    assert len(rows) == 12
    assert results["accuracy"] == rows[-1]["val_accuracy"]
    assert results["accuracy_macro"] == rows[-1]["val_accuracy_macro"]
    assert results["final_val_loss"] == rows[-1]["val_loss"]
    assert results["best_accuracy"] == max(row["val_accuracy"] for row in rows)


def test_a_setting_named_after_its_source_is_learned_as_there() -> None:
    def planned(architecture: str, task: str, setting: str, *overrides: str) -> Recipe:
        values = probe_recipe([architecture], task, setting, 32, 2, [1e-3], 1, None)
        return plan_runs(read_recipe(values, overrides)).runs[0].recipe

    zoology = planned("llama", "mqar", "zoology")
    options = probe_training(zoology, 100_000)
    expected = {"adam_beta2": 0.999, "max_grad_norm": 0, "warmup_steps": 0, "weight_decay": 0.1, "max_steps": 12_500}
    assert options.items() >= {**expected, "per_device_train_batch_size": 512}.items()
    assert stop_accuracy(zoology) == 0.99
    config = build_config(zoology)
    assert (config.position, config.embedding_dropout, config.attention_dropout) == ("learned", 0.1, 0.1)
    assert build_config(planned("gla", "mqar", "zoology")).embedding_dropout == 0.1
    changed = planned("llama", "mqar", "zoology", "training.weight_decay=0.3")
    assert probe_training(changed, 100)["weight_decay"] == 0.3
    mad = planned("gla", "compression", "mad")
    assert probe_training(mad, 12_800).items() >= {"adam_beta2": 0.999, "max_grad_norm": 0, "max_steps": 20_000}.items()
    assert stop_accuracy(mad) is None
    assert rate(mad, 12_800, 0) == 1e-3 and rate(mad, 12_800, 20_000) == pytest.approx(1e-6)
    assert probe_recipe(["gla"], "compression", "mad", 32, 2, None, 1, None)["experiment"]["matrix"] == {
        "training.learning_rate": [1e-4, 5e-4, 1e-3],
        "training.weight_decay": [0.0, 0.1],
    }
    constant = planned("gla", "selective_copying", "gu-dao")
    assert rate(constant, 100_000, 0) == rate(constant, 100_000, 399_999)
    assert probe_training(constant, 100_000)["max_steps"] == 400_000
    assert probe_training(planned("llama", "mqar", "cpu"), 8_192).get("adam_beta2", DEFAULTS["adam_beta2"]) == 0.95


def rate(recipe: Recipe, rows: int, step: int) -> float:
    """The learning rate of a step."""
    training = probe_training(recipe, rows)
    args = build_arguments(training, Precision("fp32", "asked for"), Path("checkpoints"), rows)
    return rates_of(probe_schedule(training), args)(step)


@pytest.mark.parametrize(("given", "warm"), [({}, 10), ({"warmup_steps": 30}, 30), ({"warmup_steps": 0.5}, 50)])
def test_a_warm_up_is_as_long_as_it_is_asked_to_be(given: dict[str, Any], warm: int) -> None:
    """And by default a tenth of a short run."""
    overrides = [f"training.{key}={value}" for key, value in {"max_steps": 100, **given}.items()]
    asked = recipe("llama", "mqar", *overrides)
    rates = [rate(asked, 8_192, step) for step in range(100)]
    assert rates[:warm] == pytest.approx([1e-2 * (step + 1) / warm for step in range(warm)])
    assert rates[warm:] == sorted(rates[warm:], reverse=True)


def test_compression_of_mad_is_read_by_its_decoder() -> None:
    rows = {"vocab_size": 4, "sequence_length": 4, "examples": 8}
    task = ProbeTask(recipe("gla", "compression", setting="mad", options=rows))
    model = AutoModelForCausalLM.from_config(task.config)
    task.prepare(model)
    assert model(task.train.data.inputs, use_cache=False).logits.shape == (8, task.sequence_length, task.vocab_size)
    matrices = [tuple(p.shape) for p in model.answer_decoder.parameters() if p.dim() == 2]
    assert matrices == [(32, 32), (32, 32), (task.vocab_size, 32)]


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    steps = ("training.max_steps=8", "training.learning_rate=1e30", "training.max_skipped_steps=2")
    with pytest.raises(TrainingError, match="steps in a row were skipped"):
        learn(tmp_path, "llama", "parity", *steps)


def test_a_probe_run_has_what_every_run_has(tmp_path: Path) -> None:
    results = learn(tmp_path, "gla", "parity", "training.max_steps=4")
    assert results["status"] == "completed"
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert 0 <= results["accuracy"] <= 1 and results["state_bytes"] > 0 and results["tokens_seen"] == 4 * 64 * 32
    comparison = load(tmp_path)
    assert comparison.metric == "accuracy" and not comparison.lower_is_better
    assert comparison.frame()["accuracy"][0] == results["accuracy"]
    assert hf_arch.core.registry.ARCHITECTURES.get("gla").causal_lm.from_pretrained(tmp_path / "model") is not None


def test_the_same_seed_gives_the_same_rows_and_weights(tmp_path: Path) -> None:
    results = [
        learn(tmp_path / name, "gla", "parity", "training.max_steps=3", f"experiment.seeds=[{seed}]")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert results[0]["final_val_loss"] == results[1]["final_val_loss"] != results[2]["final_val_loss"]
    fingerprints = [(entry["data_fingerprint"], entry["order_fingerprint"]) for entry in results]
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0][0] == fingerprints[2][0] and fingerprints[0][1] != fingerprints[2][1]


@pytest.mark.sampled(8)
@pytest.mark.parametrize("task", list(PROBES))
@pytest.mark.parametrize("setting", ["cpu", "paper"])
def test_every_probe_can_be_planned(task: str, setting: str) -> None:
    planned = plan_runs(read_recipe(probe_recipe(["llama", "mamba"], task, setting, 64, 2, [1e-3, 1e-2], 2, "state")))
    source = PROBES[task].setting(setting).source
    decays = len(source.sweep.get("weight_decay", (0,))) if source is not None else 1
    assert len(planned.runs) == 8 * decays
    assert all(abs(run.matched.residual) <= 0.02 for run in planned.runs if run.matched)


def test_every_model_of_a_probe_has_heads_of_its_width() -> None:
    """Some architectures have heads of 256 by default, beside which a width of 64 is next to nothing."""
    names = [
        "llama",
        "gla",
        "mamba",
        "comba",
        "gated_delta_net",
        "gated_delta_product",
        "kda",
        "mesa_net",
        "precond_kda",
    ]
    runs = plan_runs(read_recipe(probe_recipe(names, "mqar", "cpu", 64, 2, [1e-3], 1, None))).runs
    sizes = {run.declared: hf_arch.cost(run.config, 64).params_total for run in runs}
    assert len(sizes) == len(names)
    assert max(sizes.values()) < 2 * sizes["llama"], sizes


@pytest.mark.parametrize(
    ("section", "changes", "expected"),
    [
        ("probe", {"task": "mqra"}, "nearest: 'mqar'"),
        ("probe", {"options": {"num_pair": 3}}, "nearest: 'num_pairs'"),
        ("probe", {"options": {"num_pairs": 90}}, "sequence_length"),
        ("probe", {"stop_accuracy": 2.0}, "probe.stop_accuracy"),
        ("probe", {"setting": "gpu"}, "nearest: 'cpu'"),
        ("training", {"gradient_accumulation": 2}, "nearest: 'gradient_accumulation_steps'"),
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
