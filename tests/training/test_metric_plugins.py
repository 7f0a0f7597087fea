"""A metric from a plugin file: measured while training and at the end, kept with what it is, ranked and claimed on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_arch
from hf_arch.analysis.compare import compare_runs
from hf_arch.core.errors import ConfigError
from hf_arch.core.plugins import separate_plugins
from hf_arch.core.registry import METRICS, load_plugin
from hf_arch.evaluation.metric import Measurement, parse_metrics, try_metrics
from hf_arch.experiments.planning.plan import plan_runs
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import read_metrics
from hf_arch.runs.record import RunRecord
from hf_arch.training.run import run_training
from tests.training.tiny import recipe_values

REPETITION = Path(__file__).parents[1] / "ideas" / "repetition.py"
EVALUATION = {"speed": False, "new_tokens": 1}

BROKEN = """
import torch
from hf_arch.core.registry import METRICS
from hf_arch.evaluation.metric import Metric


@METRICS.register("broken_of_mine")
class Broken(Metric):
    def measure(self, model, batch, logits):
        {body}
"""


@pytest.fixture(autouse=True)
def own_registries():
    with separate_plugins():
        yield


def recipe(text: Path, metrics: Any, plugin: Path = REPETITION, **experiment: Any) -> Recipe:
    evaluation = {**EVALUATION, "metrics": metrics}
    return Recipe.from_dict(
        recipe_values(text, model={"plugins": [str(plugin)]}, evaluation=evaluation, experiment=experiment)
    )


@pytest.mark.rest
def test_a_run_measures_and_a_claim_is_judged_by_it(text: Path, tmp_path: Path) -> None:
    entry = {"type": "idea_repetition", "window": 2}
    for name, seed in (("tiny", 1), ("tiny", 2), ("other", 1), ("other", 2)):
        values = recipe(text, [entry], name=name, metric="idea_repetition").to_dict()
        values["training"] |= {"seed": seed, "max_steps": 3, **({"learning_rate": 1e-5} if name == "other" else {})}
        values["experiment"]["hypothesis"] = "tiny at most 0.9. other at least 0.95."
        run_training(Recipe.from_dict(values), tmp_path / f"{name}{seed}", quiet=True)
    record = RunRecord.load(tmp_path / "tiny1")
    facts = record.plugin_metrics["idea_repetition"]
    assert facts["value"] == record.numbers["idea_repetition"] and 0 <= facts["value"] <= 1
    assert facts["words"] == "repeated predictions" and facts["show"] == ".1%"
    rows = [row for row in read_metrics(tmp_path / "tiny1" / "metrics.jsonl") if "val_loss" in row]
    assert rows and all(0 <= row["val_idea_repetition"] <= 1 for row in rows)

    with separate_plugins():
        if "idea_repetition" in METRICS:
            METRICS.remove("idea_repetition", METRICS.owner("idea_repetition"))
        comparison = compare_runs(tmp_path)  # needs no plugin
        assert comparison.metric == "idea_repetition" and comparison.lower_is_better
        assert {verdict.outcome for verdict in comparison.verdicts} <= {"supported", "contradicted", "undecided"}
        assert all("repeated predictions" in verdict.evidence for verdict in comparison.verdicts)
        document = json.loads(json.dumps(comparison.to_dict()))
        assert all("idea_repetition" in row and "idea_repetition_low" in row for row in document["groups"])
        assert compare_runs(tmp_path, metric="final_val_loss").metric == "final_val_loss"
        with pytest.raises(ConfigError, match=r"metric: 'idea_repetitoin' is not known; nearest: 'idea_repetition'"):
            compare_runs(tmp_path, metric="idea_repetitoin")


def test_it_depends_neither_on_the_batch_nor_on_the_mode(text: Path) -> None:
    load_plugin(REPETITION)
    metrics = parse_metrics(["idea_repetition"])
    model = hf_arch.tiny_config("llama")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(model).train()
    ids = torch.randint(3, 60, (6, 12))
    state = torch.get_rng_state()
    found = []
    for size in (6, 2, 1):
        measurement = Measurement(metrics)
        measurement.add(model, [{"input_ids": part, "labels": part} for part in ids.split(size)], torch.device("cpu"))
        found.append(measurement.values()["idea_repetition"])
    assert len(set(found)) == 1 and model.training and torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        guess = model.eval()(ids).logits.argmax(-1)
    hits = sum(int(guess[b, t]) in ids[b, max(0, t - 3) : t + 1].tolist() for b in range(6) for t in range(11))
    assert found[0] == pytest.approx(hits / 66)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return 1.0", "measure returned float; expected a tensor [k] of sums"),
        ("return torch.ones(2, 2)", "measure returned a tensor [2, 2]"),
        ("return torch.ones(3)", "ValueError: measure gave 3 sums"),
        ("return torch.tensor([float('nan'), 1.0])", "is nan on a row of the untrained model"),
        ("return torch.zeros(2)", "is nan on a row"),
        ("return batch['labels_of_mine']", "line 10: KeyError: 'labels_of_mine'"),
    ],
)
def test_a_wrong_metric_is_one_line_before_a_step(body: str, expected: str, text: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(BROKEN.replace("{body}", body))
    with pytest.raises(ConfigError) as caught:
        run_training(recipe(text, ["broken_of_mine"], plugin), tmp_path / "run", quiet=True)
    said = str(caught.value)
    assert said.startswith("metric 'broken_of_mine': ") and expected in said and "\n" not in said
    assert not list((tmp_path / "run").rglob("checkpoint-*")) and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_value_that_becomes_nan_is_null(text: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    body = """self.calls = getattr(self, "calls", 0) + 1
        return torch.tensor([1.0, float(self.calls == 1)])"""
    plugin.write_text(BROKEN.replace("{body}", body))
    results = run_training(recipe(text, ["broken_of_mine"], plugin), tmp_path / "run", quiet=True)
    assert results["status"] == "completed" and results["plugin_metrics"]["broken_of_mine"]["value"] is None
    assert "broken_of_mine" not in RunRecord.load(tmp_path / "run").numbers


def test_recipes_are_strict(text: Path, tmp_path: Path) -> None:
    for metrics, expected in (
        (["idea_repetiton"], r"evaluation\.metrics\[0\]: 'idea_repetiton' is not known; nearest: 'idea_repetition'"),
        ([{"type": "idea_repetition", "windows": 3}], r"evaluation\.metrics\[0\]: unknown key 'windows'"),
        ([{"type": "idea_repetition", "window": "two"}], r"window: 'two' is not allowed; expected int"),
        (["idea_repetition", "idea_repetition"], r"'idea_repetition' is named twice"),
        ([{"window": 3}], r"expected the name of a metric, or a section with its `type`"),
    ):
        with pytest.raises(ConfigError, match=expected):
            recipe(text, metrics)
    planned = recipe(text, ["idea_repetition"], metric="idea_repetition", seeds=[1, 2])
    assert len(plan_runs(planned).runs) == 2
    with pytest.raises(ConfigError, match=r"experiment\.metric: 'idea_repetition' is not known"):
        plan_runs(recipe(text, [], metric="idea_repetition"))
    taken = tmp_path / "taken.py"
    taken.write_text(REPETITION.read_text().replace("idea_repetition", "mfu"))
    with pytest.raises(ConfigError, match="metric 'mfu': a number of results"):
        run_training(recipe(text, ["mfu"], taken), tmp_path / "run", quiet=True)
    load_plugin(taken)
    with pytest.raises(ConfigError, match="'%q' does not write a number"):
        METRICS["mfu"].show = "%q"
        METRICS.register("mfu2")(METRICS["mfu"])
        try_metrics(parse_metrics(["mfu2"]), None, {}, torch.device("cpu"))
