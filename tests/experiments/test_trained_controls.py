"""Controls that are really trained: the page shows the claim with and without them."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_arch.analysis.compare import compare_runs
from hf_arch.cli.run import run_recipe
from hf_arch.experiments.execution.runner import RunOptions
from hf_arch.runs.record import RunRecord
from hf_arch.runs.suite import run_folders
from tests.training.tiny import recipe_values, write_text


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["griffin", "yoco"])
def test_the_factor_on_embeddings_is_trained_on_both_sides(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path / "cache"))
    values: dict[str, Any] = recipe_values(write_text(tmp_path))
    values["model"] = {"hidden_size": 32, "num_attention_heads": 2, "head_dim": 16, "intermediate_size": 48}
    runs = {run: {"model": {"architecture": run, "num_hidden_layers": 6}} for run in ("llama", name)}
    values["training"] |= {"max_steps": 2, "warmup_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    values["evaluation"] |= {"speed": False, "new_tokens": 1}
    values["experiment"] = {"name": "scale", "seeds": 2, "hypothesis": f"{name} better than llama", "runs": runs}
    file = tmp_path / "scale.yaml"
    file.write_text(yaml.safe_dump(values))
    results = tmp_path / "results"
    assert run_recipe(file, results, RunOptions(), controls=True) == 0
    comparison = compare_runs(results)
    records = [RunRecord.load(folder) for folder in run_folders(results)]
    scales = {run.name: run.experiment["config"]["embedding_multiplier"] for run in records if run.completed}
    control = next(one for one in comparison.controls if "embedding scale" in one.removes)
    first, second = control.runs  # the factor is taken from yoco, and given to llama where griffin cannot lose it
    assert scales[name] == pytest.approx(32**0.5) and scales["llama"] == 1.0 and scales[first] == scales[second]
    assert "embedding scale" in comparison.confounding_checks(name, "llama")
    assert "embedding scale" not in control.confounds and control.after.difference is not None
    assert "once " in control.sentence and "embeddings and logits are multiplied by the same" in control.sentence
    page = " ".join(html.unescape((results / "report.html").read_text()).replace("\xa0", " ").split())
    assert control.sentence in page
