"""Controls: what separates the sides of a claim is found before training, and taken out by as few runs as do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.controls import claimed_pairs
from hf_arch.cli.run import run_recipe
from hf_arch.core.errors import ConfigError
from hf_arch.core.files import write_json
from hf_arch.experiments.execution import runner
from hf_arch.experiments.planning.confounds import BRANCHES, CONVOLUTION, EMBEDDING, FLOPS, RATE, confounds
from hf_arch.experiments.planning.controls import _Planning, plan_controls
from hf_arch.recipe.recipe import Recipe, read_recipe
from hf_arch.runs.limits import LARGEST_GAIN
from tests.report.text import comparison_text
from tests.training.tiny import recipe_values, write_text

RUNS: dict[str, dict[str, Any]] = {
    "gdn": {"model.architecture": "gated_delta_net"},
    "gla": {"model.architecture": "gla"},
    "kda": {"model.architecture": "kda"},
    "kda_silu": {"model": {"architecture": "kda", "gate_activation": "silu"}},
}
MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16, "intermediate_size": 48}


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path / "cache"))
    return write_text(tmp_path)


def recipe(text: Path, hypothesis: str, runs: dict[str, Any] | None = None, **experiment: Any) -> Recipe:
    values = recipe_values(text)
    values["model"] = MODEL
    settings = {"name": "study", "seeds": 2, "match": {"by": "parameters", "tolerance": 0.03}, "hypothesis": hypothesis}
    values["experiment"] = {**settings, "runs": runs or RUNS, **experiment}
    return read_recipe(values)


def test_the_confounds_of_each_claim_are_removed_one_after_the_other(text: Path) -> None:
    asked = recipe(text, "gdn better than gla", match=None, learning_rates=[1e-3, 1e-2])
    planned = plan_controls(asked, [("gdn", "gla")])
    assert planned.stages[0].removes == (CONVOLUTION,)
    assert planned.stages[0].runs == ("gla+short_convolution", "gdn")
    assert planned.stages[0].words == "the short convolution is on both sides"
    planning = _Planning(planned.recipe)
    last = planned.stages[-1].runs
    facts = [planning._look(name)[1] for name in last]
    assert confounds(*facts) == []
    before = [planning._look(name)[1] for name in ("gla", "gdn")]
    assert CONVOLUTION in confounds(*before) and CONVOLUTION in planned.stages[-1].removes
    assert planned.facts["gla+short_convolution"]["control"]["of"] == "gla"
    assert plan_controls(asked, [("gdn", "gla")]).recipe == planned.recipe  # the same runs again, so they resume


def test_no_control_multiplies_a_branch_by_thousands(text: Path) -> None:
    """GLA's branch writes almost nothing behind a new convolution: the pair goes without one instead."""
    asked = recipe(text, "gdn better than gla", match=None)
    planned = plan_controls(asked, [("gdn", "gla")])
    assert any("would have to be multiplied by a factor of" in note for note in planned.notes)
    scales = [run["model"].get("branch_scales") or [] for run in planned.recipe.experiment.runs.values() if run]
    factors = [factor for layers in scales for layer in layers for factor in layer]
    assert all(1 / LARGEST_GAIN <= factor <= LARGEST_GAIN for factor in factors)
    neither = next(stage for stage in planned.stages if "on neither side" in stage.words)
    assert neither.runs == ("gla", "gdn+no_short_convolution")
    assert planned.stages[-1].removes[-1] == RATE and planned.stages[-1].runs[1].startswith(neither.runs[1])


def test_the_scale_of_branches_is_a_control_of_its_own(text: Path) -> None:
    runs = {name: RUNS[name] for name in ("kda", "kda_silu")}
    planned = plan_controls(recipe(text, "kda_silu better than kda", runs), [("kda_silu", "kda")])
    removes = [stage.removes for stage in planned.stages]
    assert removes == [(BRANCHES,)]  # the same convolution, FLOPs and rate on both sides
    run = planned.recipe.experiment.runs["kda_silu+branch_scale"]
    assert run is not None and len(run["model"]["branch_scales"]) == 2
    assert run["model"]["branch_scales"][0][0] > 3


def test_flops_and_rates_are_made_equal(text: Path) -> None:
    wide = {"narrow": {"model.architecture": "llama"}, "wide": {"model": {"architecture": "gpt2", "hidden_size": 128}}}
    planned = plan_controls(recipe(text, "wide better than narrow", wide, match=None), [("wide", "narrow")])
    removes = planned.stages[-1].removes
    assert FLOPS in removes and removes[-1] == RATE
    planning = _Planning(planned.recipe)
    names = next(stage.runs for stage in planned.stages if stage.removes[-1] == FLOPS)
    sizes = [planning._look(name)[1].flops for name in names]
    assert max(sizes) / min(sizes) < 1.06
    rates = planned.recipe.experiment.learning_rates
    assert rates is not None and set(rates.runs) == set(planned.stages[-1].runs) and len(rates.rates) == 3


def test_what_cannot_be_equal_is_said(text: Path) -> None:
    runs = {"llama": {"model.architecture": "llama"}, "mamba": {"model.architecture": "mamba"}}
    planned = plan_controls(recipe(text, "mamba better than llama", runs, match=None), [("mamba", "llama")])
    assert any("neither llama can be given one nor mamba lose its own" in note for note in planned.notes)
    with pytest.raises(ConfigError, match="names no runs"):
        plan_controls(read_recipe({"model": {"architecture": "llama"}}), [("a", "b")])


def test_claims_name_runs_or_architectures() -> None:
    runs = {"one": "gla", "two": "llama", "three": "llama"}
    hypothesis = "gla better than two; three within 0.1 of gla; llama worse than one; one at most 3.2"
    assert claimed_pairs(hypothesis, runs) == [("one", "two"), ("three", "one")]


@pytest.mark.rest
def test_the_command_shows_trains_and_reports_them(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = recipe_values(text)
    values["model"] = MODEL
    runs = {name: RUNS[name] for name in ("kda", "kda_silu")}
    values["experiment"] = {"name": "study", "seeds": 3, "hypothesis": "kda_silu better than kda", "runs": runs}
    file = tmp_path / "a study.yaml"
    file.write_text(yaml.safe_dump(values))
    losses = {"kda": 4.80, "kda_silu": 4.14, "kda_silu+branch_scale": 4.76}

    def train(prepared: runner.PreparedSet, results_dir: Path, options: runner.RunOptions) -> list[Any]:
        for run in prepared.runs:
            seed = run.config["training"]["seed"]
            results = {"status": "completed", "seed": seed, "final_val_loss": losses[run.name] + 0.003 * seed**2}
            results["final_val_loss"] += 0.01 * (seed == 2 and run.name != "kda")
            scale = 0.03 if run.name == "kda_silu" else 0.3
            results["branch_scale"] = {"mixer": [scale, scale], "ffn": [0.1, 0.1]}
            write_json(run.folder / "experiment_config.json", run.config)
            write_json(run.folder / "results.json", {"name": run.name, "learning_rate": 1e-3, **results})
        return []

    monkeypatch.setattr("hf_arch.experiments.execution.sets.train_set", train)
    options = runner.RunOptions()
    assert run_recipe(file, tmp_path / "results", options, controls=True, dry_run=True) == 0
    shown = capsys.readouterr()
    assert "kda_silu+branch_scale" in shown.out and "9 of 9 runs to train" in shown.out
    assert "control: kda_silu+branch_scale against kda for kda_silu against kda: their branches begin" in shown.err
    assert run_recipe(file, tmp_path / "with out", options, overrides=["training.max_steps=2"]) == 0
    shown = capsys.readouterr().out.replace("\n", " ")
    command = f"hf-arch run '{file}' training.max_steps=2 --results-dir '{tmp_path / 'with out'}' --controls"
    assert compare_runs(tmp_path / "with out").controls_command == command
    assert "To remove what confounds the claims (branch scale)" in shown
    assert run_recipe(file, tmp_path / "results", options, controls=True) == 0
    comparison = compare_runs(tmp_path / "results")
    assert comparison.controls_command is None and comparison.verdicts[0].outcome == "confounded"
    (control,) = comparison.to_dict()["controls"]
    assert control["removes"] == ["branch scale"] and control["claim"] == "kda_silu better than kda"
    said = "0.66 nats between kda_silu and kda; 0.04 [0.02, 0.05] of it remains once their branches begin with the same"
    assert control["sentence"].startswith(said)
    assert "with controls: 0.66 nats" in " ".join(comparison_text(comparison, 200).split())
    assert said in (tmp_path / "results" / "report.html").read_text().replace("\xa0", " ")
    assert "Its lead over all others is confounded (branch scale)" in comparison.headline


@pytest.mark.parametrize("name", ["griffin", "yoco"])
def test_the_scale_of_embeddings_is_made_equal(name: str, text: Path) -> None:
    runs: dict[str, Any] = {run: {"model": {"architecture": run, "num_hidden_layers": 6}} for run in ("llama", name)}
    planned = plan_controls(recipe(text, f"{name} better than llama", runs, match=None), [(name, "llama")])
    stage = next(stage for stage in planned.stages if EMBEDDING in stage.removes)
    assert "embeddings and logits are multiplied by the same" in stage.words and stage.runs[1] == "llama"
    planning = _Planning(planned.recipe)
    scales = {run: planning._look(run)[0].config.embedding_multiplier for run in (name, *stage.runs)}
    assert scales == {name: pytest.approx(32**0.5), stage.runs[0]: 1.0, "llama": 1.0}
    assert EMBEDDING not in confounds(*(planning._look(run)[1] for run in stage.runs))


def test_a_question_about_the_scale_of_embeddings_keeps_it(text: Path) -> None:
    runs: dict[str, Any] = {"one": {"model.architecture": "llama"}, "six": {"model": {"embedding_multiplier": 6.0}}}
    runs["six"]["model"]["architecture"] = "llama"
    planned = plan_controls(recipe(text, "six better than one", runs, match=None), [("six", "one")])
    assert not any(EMBEDDING in stage.removes for stage in planned.stages)
