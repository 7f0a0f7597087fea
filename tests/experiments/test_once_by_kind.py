"""Whatever kind of set: it is planned and compared once, and the process of a run plans nothing."""

from __future__ import annotations

import collections
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_arch.analysis import compare
from hf_arch.cli.run import run_recipe
from hf_arch.core.files import write_json
from hf_arch.experiments.execution import child, tune
from hf_arch.experiments.execution.runner import RunOptions
from hf_arch.experiments.planning.plan import Planner
from hf_arch.experiments.planning.prepare import PreparedSet
from hf_arch.report import conclude
from tests.training.tiny import recipe_values, write_text

MODEL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "ffn": "none"}
RUNS = {name: {"model.architecture": name} for name in ("llama", "gla")}
KINDS: dict[str, dict[str, Any]] = {
    "set": {},
    "matched": {"match": {"by": "parameters", "tolerance": 0.1}},
    "rates": {"learning_rates": {"rates": [1e-4, 1e-3, 1e-2]}},
    "tune": {"tune": {"low": 1e-5, "high": 1.0, "trials": 2}},
    "controls": {},
    "seeds": {"seeds": {"auto": True, "from": 2, "most": 3}},
}


def probe(kind: str) -> dict[str, Any]:
    own = {"name": kind, "hypothesis": "gla better than llama", "seeds": 2, "runs": RUNS, **KINDS[kind]}
    return {"model": MODEL, "probe": {"task": "parity"}, "training": {"max_steps": 1}, "experiment": own}


def recipe_of(kind: str, folder: Path) -> Path:
    if kind == "ladder":
        values = recipe_values(write_text(folder))
        for key in ("max_steps", "save_steps"):
            del values["training"][key]
        ladder = {"sizes": [6000, 20000], "tokens_per_parameter": [0.1, 0.25]}
        values["experiment"] = {"name": "ladder", "ladder": ladder}
    elif kind == "sets":
        for name in ("set", "matched"):
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(probe(name)))
        values = {"experiment": {"name": "sets", "sets": ["set.yaml", "matched.yaml"]}}
    else:
        values = probe(kind)
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


class Studies:
    """In place of Optuna: the rates of trials one after the other."""

    def __init__(self, names: list[str], *_: Any) -> None:
        self.names = names

    def rates(self, trial: int) -> dict[str, float]:
        return dict.fromkeys(self.names, 10.0 ** (trial - 4))

    def record(self, *_: Any) -> None:
        return


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """How often each thing was done; in place of training, results are written, and the child of each run begun."""
    done: collections.Counter[str] = collections.Counter()

    def count(owner: Any, name: str, key: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            done[key] += 1
            return original(*args, **options)

        monkeypatch.setattr(owner, name, counted)

    count(Planner, "__init__", "planners")
    count(Planner, "plan", "plans")
    count(compare, "audit_set", "comparisons")
    monkeypatch.setattr(conclude, "write_report", lambda _folder, comparison: done.update(pages=1))
    monkeypatch.setattr(tune, "_Studies", Studies)

    def train(prepared: PreparedSet, _folder: Path, _options: RunOptions) -> list[Any]:
        before = done["planners"], done["plans"]
        for run in prepared.runs:
            if run.status == "completed":
                continue
            run.write_config()
            done["trained"] += 1
            assert child.train_folder(run.folder) == 0
            seed, rate = (run.config["training"].get(key, 1) for key in ("seed", "learning_rate"))
            numbers = {"accuracy": 0.5 + 0.001 * seed - 0.1 * abs(math.log10(rate) + 3), "final_val_loss": 1.0}
            facts = {"name": run.name, "status": "completed", "seed": seed, "learning_rate": rate}
            architecture = run.config["model"].get("architecture", "llama")
            write_json(run.folder / "results.json", {**facts, "architecture": architecture, **numbers})
        done["planned in a child"] += (done["planners"], done["plans"]) != before
        return []

    for module in ("sets", "rates", "tune", "ladder"):
        monkeypatch.setattr(f"hf_arch.experiments.execution.{module}.train_set", train)
    monkeypatch.setattr(
        "hf_arch.training.run.run_training", lambda *_args, **_options: {"name": "x", "status": "completed"}
    )
    return done


# How often each kind is laid out from a recipe, matched, and compared.
EXPECTED = {
    "set": (1, 1, 1),
    "matched": (1, 1, 1),
    "sets": (2, 2, 2),
    "ladder": (1, 1, 1),
    "rates": (2, 2, 1),  # the sweep, and the set at the best rates
    "tune": (4, 4, 1),  # two trials, one beyond the end that was best, the set
    "controls": (5, 5, 1),  # two sides looked at, the sweep of the controls and a rate beyond its end, the set
    "seeds": (
        2,
        1,
        2,
    ),  # a claim is looked for before anything is prepared; a comparison after two seeds and after three
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", EXPECTED)
def test_planned_and_compared_once(
    kind: str, tmp_path: Path, counts: collections.Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path / "cache"))
    path = recipe_of(kind, tmp_path)
    assert run_recipe(path, tmp_path / "results", RunOptions(), controls=kind == "controls") == 0
    assert counts["trained"] and not counts["planned in a child"]
    assert counts["pages"] == (2 if kind == "sets" else 1)
    assert (counts["planners"], counts["plans"], counts["comparisons"]) == EXPECTED[kind]
