"""Learning-rate schedules: what those of transformers answer is what Trainer does, and one of a plugin file is trained
with, resumed bit-equal, extended, branched from, audited and kept by its run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SchedulerType, get_scheduler

from hf_arch.analysis.audits.training import check_schedule
from hf_arch.analysis.curves import decaying_schedule, recorded_schedule
from hf_arch.core.errors import ConfigError
from hf_arch.core.plugins import separate_plugins
from hf_arch.core.registry import SCHEDULES, load_plugin
from hf_arch.experiments.planning.ladder import Budget, _schedules, trunk_schedule
from hf_arch.recipe.ladder import LadderOptions
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import read_metrics
from hf_arch.runs.suite import find_runs
from hf_arch.schedules.base import LOOKED_AT, Schedule, ScheduledRun, sampled_steps
from hf_arch.schedules.choose import choose_schedule, schedule_names
from hf_arch.training.run import run_training
from tests.training.tiny import recipe_values

PLUGIN = Path(__file__).parents[1] / "ideas" / "one_minus_sqrt.py"
MINE = "idea_one_minus_sqrt"
QUICK = {"speed": False, "new_tokens": 1}
GIVEN = {
    "cosine_with_min_lr": {"min_lr": 1e-4},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1, "warmup_lr_rate": 0.2},
    "warmup_stable_decay": {"num_decay_steps": 4},
    "polynomial": {"power": 2.0},
}
OF_LOSSES = ("reduce_lr_on_plateau", "greedy")
CONSTANT = ("constant", "constant_with_warmup")


@pytest.fixture(autouse=True)
def own_registries():
    with separate_plugins():
        yield


def chosen(name: str, warmup: int = 0, **options: Any) -> Schedule:
    return choose_schedule({"lr_scheduler_type": name, "lr_scheduler_kwargs": options, "warmup_steps": warmup})


def recipe(text: Path, plugin: Path = PLUGIN, name: str = MINE, **training: Any) -> Recipe:
    training = {"lr_scheduler_type": name, **training}
    return Recipe.from_dict(recipe_values(text, model={"plugins": [str(plugin)]}, training=training, evaluation=QUICK))


def rows(folder: Path, key: str = "loss") -> dict[int, float]:
    return {row["step"]: row[key] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row}


def test_every_schedule_of_transformers_is_here() -> None:
    assert {entry.value for entry in SchedulerType} <= set(schedule_names())


@pytest.mark.parametrize("name", [entry.value for entry in SchedulerType if entry.value not in OF_LOSSES])
def test_the_rates_are_those_that_the_scheduler_sets(name: str) -> None:
    run, given = ScheduledRun(20, 4, 0.005), GIVEN.get(name, {})
    schedule = chosen(name, run.warmup, **given)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=run.learning_rate)
    scheduler = get_scheduler(schedule.name, optimizer, run.warmup, run.steps, given)
    for step in range(run.steps + 1):
        assert schedule.rate(step, run) == scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
    assert schedule.decays(run) == (name not in CONSTANT)
    assert schedule.depends_on_length(run, 30) == (name not in (*CONSTANT, "inverse_sqrt"))
    assert schedule.end(run) == schedule.rate(19, run) / max(schedule.rate(step, run) for step in range(20))


def test_a_constant_rate_with_a_warm_up_has_one_and_a_schedule_of_losses_refuses_it() -> None:
    assert chosen("constant").name == "constant" and chosen("constant", 3).name == "constant_with_warmup"
    assert chosen("constant", 3).rate(0, ScheduledRun(6, 3)) == 0.0
    for name in OF_LOSSES:
        assert not chosen(name).follows_steps
        with pytest.raises(ConfigError, match=rf"training\.warmup_steps: 3 has no effect with '{name}'"):
            chosen(name, 3)


def test_a_long_run_is_looked_at_in_few_steps() -> None:
    found = sampled_steps(ScheduledRun(10**6, 1234))
    assert {0, 1233, 1234, 1235, 999_999, 10**6} <= set(found) and len(found) <= LOOKED_AT + 10
    assert found == sorted(set(found)) and sampled_steps(ScheduledRun(3)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"lr_scheduler_type": "idea_one_minus_sqr"}, f"'idea_one_minus_sqr' is not known; nearest: '{MINE}'"),
        ({"lr_scheduler_kwargs": {"decay": 2}}, "training.lr_scheduler_kwargs: unknown key 'decay'; nearest: 'decay_s"),
        ({"lr_scheduler_kwargs": {"floor": "low"}}, "training.lr_scheduler_kwargs: floor: 'low' is not allowed"),
        (
            {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"num_cycles": 2}},
            "training.lr_scheduler_kwargs: unknown key 'num_cycles'",
        ),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"min_lr": 0.1}},
            "training.lr_scheduler_kwargs: unknown key 'min_lr'",
        ),
        (
            {"lr_scheduler_type": "warmup_stable_decay"},
            "training.lr_scheduler_kwargs: 'warmup_stable_decay' needs num_decay_steps",
        ),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"num_decay_steps": 2, "decay_type": "x"},
            },
            "training.lr_scheduler_kwargs: Unknown decay type: x",
        ),
    ],
)
def test_options_are_strict(training: dict[str, Any], expected: str, text: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_training(recipe(text, **training), tmp_path / "run", quiet=True)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.rest
def test_a_resumed_run_is_equal_and_the_run_keeps_the_code(text: Path, tmp_path: Path) -> None:
    settings = {"lr_scheduler_kwargs": {"decay_steps": 3, "floor": 0.1}}
    whole = run_training(recipe(text, **settings), tmp_path / "whole", quiet=True)
    schedule = chosen(MINE, **settings["lr_scheduler_kwargs"])
    rates = rows(tmp_path / "whole", "learning_rate")
    assert rates == {step: pytest.approx(schedule.rate(step - 1, ScheduledRun(6, 2, 0.005))) for step in range(1, 7)}
    assert rates[6] == pytest.approx(0.005 * (1 - 0.9 * (2 / 3) ** 0.5)) and rates[3] == rates[4] == 0.005
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part" / "results.json").unlink()
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "checkpoint-6")
    part = run_training(recipe(text, **settings), tmp_path / "part", resume=True, quiet=True)
    assert rows(tmp_path / "part") == rows(tmp_path / "whole")
    assert part["final_val_loss"] == whole["final_val_loss"]
    assert (tmp_path / "whole" / "plugins" / PLUGIN.name).read_text() == PLUGIN.read_text()
    with pytest.raises(ConfigError, match=r"training\.lr_scheduler_kwargs"):
        run_training(recipe(text), tmp_path / "part", resume=True, quiet=True)

    [record] = [run for run in find_runs(tmp_path) if run.path.name == "whole"]
    assert decaying_schedule(record) == MINE
    assert recorded_schedule(record)[0].end(ScheduledRun(6, 2, 0.005)) == pytest.approx(rates[6] / 0.005)
    logged = [row for row in read_metrics(tmp_path / "whole" / "metrics.jsonl") if row["step"] < 5]
    (tmp_path / "whole" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))
    [unlogged] = [run for run in find_runs(tmp_path) if run.path.name == "whole"]
    assert check_schedule([unlogged]).severity == "ok"  # its last decay is known from the schedule


@pytest.mark.rest
def test_an_extended_run_is_from_there_on_one_of_its_new_length(text: Path, tmp_path: Path) -> None:
    run_training(recipe(text), tmp_path / "run", quiet=True)
    results = run_training(recipe(text), tmp_path / "run", quiet=True, extend_to=9)
    schedule, new = chosen(MINE), ScheduledRun(9, 2, 0.005)
    assert {at: rate for at, rate in rows(tmp_path / "run", "learning_rate").items() if at > 6} == {
        step: pytest.approx(schedule.rate(step - 1, new)) for step in (7, 8, 9)
    }
    assert f"schedule ({MINE}) is that of a run of 9 steps" in results["changes"][0]["note"]


BROKEN = """
from hf_arch.core.registry import SCHEDULES
from hf_arch.schedules.base import Schedule


@SCHEDULES.register("broken_of_mine")
class Broken(Schedule):
    def factor(self, step, run):
        {body}

    @classmethod
    def branch_options(cls, decay_steps):
        return {}
"""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return -1", "the learning rate of step 0 of 6 is -0.005; expected a number of at least 0"),
        ("return float('nan') if step == 6 else 1", "the learning rate of step 6 of 6 is nan"),
        ("return 1 / (3 - step)", "step 3 of 6: "),
        ("return None", "step 0 of 6: "),
        ("return run.learning_rate + 1j", "expected a number of at least 0"),
    ],
)
def test_a_wrong_schedule_is_one_line_before_anything_is_written(
    body: str, expected: str, text: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(BROKEN.replace("{body}", body))
    with pytest.raises(ConfigError) as caught:
        run_training(recipe(text, plugin, "broken_of_mine"), tmp_path / "run", quiet=True)
    said = str(caught.value)
    assert said.startswith("training.lr_scheduler_type: 'broken_of_mine': ") and expected in said and "\n" not in said
    assert not (tmp_path / "run").exists()


def test_a_ladder_takes_schedules_from_which_runs_can_branch(tmp_path: Path) -> None:
    load_plugin(PLUGIN)
    budgets = [Budget(1.0, 10, 2), Budget(2.0, 20, 4)]
    trunk = {"type": MINE, "floor": 0.1}
    found = _schedules(LadderOptions((1e4,), trunk=trunk), budgets, 3, 1e-3)
    assert found[budgets[0]] == {"lr_scheduler_type": MINE, "lr_scheduler_kwargs": {"floor": 0.1, "decay_steps": 2}}
    assert trunk_schedule(LadderOptions((1e4,)))[1] == "warmup_stable_decay"
    with pytest.raises(ConfigError, match=r"experiment\.ladder\.trunk: 'cosine' is not known"):
        trunk_schedule(LadderOptions((1e4,), trunk="cosine"))
    with pytest.raises(ConfigError, match=r"lr_scheduler_kwargs: unknown key 'flor'; nearest: 'floor'"):
        _schedules(LadderOptions((1e4,), trunk={"type": MINE, "flor": 1}), budgets, 3, 1e-3)
    (tmp_path / "broken.py").write_text(BROKEN.replace("{body}", "return 1 - step / run.steps"))
    load_plugin(tmp_path / "broken.py")
    with pytest.raises(ConfigError, match="no run can branch from it"):
        _schedules(LadderOptions((1e4,), trunk="broken_of_mine"), budgets, 3, 1e-3)


def test_what_a_plugin_registers_has_to_be_a_schedule(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(
        "from hf_arch.core.registry import SCHEDULES\n\n\n@SCHEDULES.register('bare')\ndef bare(): ...\n"
    )
    with pytest.raises(ConfigError, match=r"schedule: 'bare' is bare, which is not a subclass of hf_arch\.schedules"):
        load_plugin(tmp_path / "bare.py")
    assert "bare" not in SCHEDULES
