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
from hf_arch.recipe.build import build_config
from hf_arch.recipe.recipe import Recipe, read_recipe
from hf_arch.training.probe_run import probe_training, run_probe
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
    assert learned.final.accuracy >= 0.99
    assert learned.steps < 200  # it ends once it is solved
    assert learned.final == learned.best


def test_a_row_is_read_from_the_last_state_alone() -> None:
    learner, train, test = model("gla", "compression", vocab_size=4, sequence_length=4, examples=256)
    assert train.from_last_state
    reader = ProbeModel(learner, train)
    logits, answers = reader(test.inputs[:8], test.labels[:8])
    assert logits.shape == (8 * 4, train.vocab_size) and torch.equal(answers, test.labels[:8].flatten())
    learned = learn_probe(learner, train, test, ProbeTraining(max_steps=300, learning_rate=1e-2, eval_steps=50))
    assert learned.final.accuracy > 0.9


@pytest.mark.parametrize("task", ["mqar", "selective_copying"])
def test_macro_accuracy_is_the_mean_over_classes(task: str) -> None:
    """Against the definition, class by class; a class that is only guessed counts nothing right."""
    learner, _, test = model("llama", task)
    score = score_probe(ProbeModel(learner, test), test, 0, torch.device("cpu"))
    with torch.no_grad():
        guesses = learner(test.inputs).logits.argmax(-1)[test.labels != -100]
    answers = test.labels[test.labels != -100]
    shares = []
    for token in torch.cat([answers, guesses]).unique():
        mine = answers == token
        shares.append((guesses[mine] == token).double().mean().item() if mine.any() else 0.0)
    assert score.accuracy_macro == pytest.approx(sum(shares) / len(shares), abs=1e-12)


def test_the_final_weights_are_reported_and_the_best_beside_them(tmp_path: Path) -> None:
    """A rate that ruins the model late: the best evaluation is not the last."""
    results = run_probe(
        recipe("gla", "parity", "training.max_steps=12", "training.eval_steps=1", "training.learning_rate=0.3"),
        tmp_path,
        quiet=True,
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
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
    assert (options.adam_beta2, options.max_grad_norm, options.warmup_steps, options.weight_decay) == (0.999, 0, 0, 0.1)
    assert options.per_device_train_batch_size == 512 and options.max_steps == 12_500 and options.stop_accuracy == 0.99
    config = build_config(zoology)
    assert (config.position, config.embedding_dropout, config.attention_dropout) == ("learned", 0.1, 0.1)
    assert build_config(planned("gla", "mqar", "zoology")).embedding_dropout == 0.1
    assert probe_training(planned("llama", "mqar", "zoology", "training.weight_decay=0.3"), 100).weight_decay == 0.3
    mad = probe_training(planned("gla", "compression", "mad"), 12_800)
    assert (mad.adam_beta2, mad.max_grad_norm, mad.stop_accuracy, mad.max_steps) == (0.999, 0, None, 20_000)
    assert mad.rate(0) == 1e-3 and mad.rate(20_000) == pytest.approx(1e-6)
    assert probe_recipe(["gla"], "compression", "mad", 32, 2, None, 1, None)["experiment"]["matrix"] == {
        "training.learning_rate": [1e-4, 5e-4, 1e-3],
        "training.weight_decay": [0.0, 0.1],
    }
    constant = probe_training(planned("gla", "selective_copying", "gu-dao"), 100_000)
    assert constant.rate(0) == constant.rate(399_999) and constant.max_steps == 400_000
    assert probe_training(planned("llama", "mqar", "cpu"), 8_192).adam_beta2 == 0.95


def test_compression_of_mad_is_read_by_its_decoder() -> None:
    learner, train, _ = model("gla", "compression", vocab_size=4, sequence_length=4, examples=8)
    reader = ProbeModel(learner, train, mad_decoder=True)
    assert reader(train.inputs, train.labels)[0].shape == (32, 4)
    assert [tuple(p.shape) for name, p in reader.decoder.named_parameters() if p.dim() == 2] == [
        (32, 32),
        (32, 32),
        (4, 32),
    ]


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
    source = PROBES[task].setting(setting).source
    decays = len(source.sweep.get("weight_decay", (0,))) if source is not None else 1
    assert len(planned.runs) == 8 * decays
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
