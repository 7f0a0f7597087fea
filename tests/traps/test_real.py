"""Traps and honest differences in runs that were really trained: one side of a question is trained again, otherwise.

The question is the number of heads. Each side has three seeds of a few steps; what is planted is a setting, a plugin,
its environment, the text, or a file of results changed by hand. Whatever the losses say, a trap is named.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from tests.traps.real_sets import TINY, train_seed

pytestmark = pytest.mark.slow
CLAIM = "four better than two"
SEEDS = (1, 2, 3)
HEADS = {"two": 2, "four": 4}
PLUGIN = """
import os
from hf_arch.core.options import Options, options
from hf_arch.core.registry import INITS
from hf_arch.models.init_policy import InitPolicy

@options
class Given(Options):
    freeze: bool = False

@INITS.register("trap_init")
class Trap(InitPolicy):
    Options = Given
    def init_parameter(self, parameter, role, name):
        if role == "matrix" and os.environ.get("TRAP_SCALE"):
            parameter.mul_(1.5)
        if role == "matrix" and self.options.freeze:
            parameter.requires_grad_(False)
"""
Change = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a plugin and the two honest sides, `two` and `four`."""
    root = tmp_path_factory.mktemp("real")
    write_text(root)
    (root / "trap.py").write_text(PLUGIN)
    for name, heads in HEADS.items():
        for seed in SEEDS:
            train(root, root / "honest" / f"{name}-{seed}", name, heads, seed, {})
    return root


def write_text(root: Path, word: str = "costs") -> None:
    (root / "text.txt").write_text(
        "".join(f"Item {i} {word} {i * 7 % 97} and {i * i % 89} more.\n" for i in range(9000))
    )


def train(root: Path, folder: Path, name: str, heads: int, seed: int, change: Change) -> None:
    data = {"corpus": str(root / "text.txt"), "tokenizer": "byte", **change.get("data", {})}
    model = {"plugins": [str(root / "trap.py")], "init": "trap_init", **change.get("model", {})}
    model = {**TINY["model"], "num_attention_heads": heads, **model}
    own = {key: {**TINY[key], **value} for key, value in change.items() if key in ("training", "evaluation")}
    train_seed(
        folder, name, seed, CLAIM, data=data, model=model, experiment={"vary": ["model.num_attention_heads"]}, **own
    )


def mixed(root: Path, tmp_path: Path, change: Change, seeds: tuple[int, ...] = SEEDS) -> Path:
    """The honest `two` next to a `four` of which these seeds are trained with a change."""
    shutil.copytree(root / "honest", tmp_path / "mixed")
    for seed in seeds:
        folder = tmp_path / "mixed" / f"four-{seed}"
        shutil.rmtree(folder)
        train(root, folder, "four", HEADS["four"], seed, change)
    return tmp_path / "mixed"


def found(folder: Path, metric: str | None = None) -> tuple[set[str], str]:
    comparison = compare_runs(folder, metric=metric)
    outcomes = [verdict.outcome for verdict in comparison.verdicts]
    assert len(comparison.groups) == 2 and all(len(group.counted) == 3 for group in comparison.groups)
    return {finding.check for finding in comparison.confounds("four", "two")}, ", ".join(outcomes)


TRAPS: dict[str, tuple[str, Change]] = {
    "half the steps, twice the batch": (
        "settings",
        {"training": {"per_device_train_batch_size": 16, "max_steps": 12}},
    ),
    "a rate that ends elsewhere": (
        "schedule",
        {"training": {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-3}}},
    ),
    "a longer warm-up": ("schedule", {"training": {"warmup_steps": 12}}),
    "clipping": ("optimiser", {"training": {"max_grad_norm": 0.05}}),
    "other betas": ("optimiser", {"training": {"adam_beta2": 0.9}}),
    "label smoothing": ("settings", {"training": {"label_smoothing_factor": 0.2}}),
    "fewer steps": ("tokens", {"training": {"max_steps": 20}}),
    "shorter rows, as many tokens": (
        "settings",
        {"data": {"sequence_length": 32}, "training": {"per_device_train_batch_size": 16}},
    ),
    "fewer rows scored": ("rows", {"evaluation": {"final_sequences": 16}}),
    "one order for every seed": ("seeds", {"training": {"data_seed": 7}}),
    "frozen matrices": ("initialisation", {"model": {"init": {"type": "trap_init", "freeze": True}}}),
    "dropout": ("dropout", {"model": {"residual_dropout": 0.2}}),
    "a penalty on logits": ("losses", {"model": {"max_logit_penalty": 1e-3}}),
    "the best of several evaluations": (
        "settings",
        {"training": {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 8, "save_steps": 8}},
    ),
    "a rate of its own": ("learning rate", {"training": {"learning_rate": 1e-2}}),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_setting_of_one_side_is_named(trap: str, place: Path, tmp_path: Path) -> None:
    check, change = TRAPS[trap]
    checks, outcome = found(mixed(place, tmp_path, change))
    assert check in checks, checks
    assert outcome not in ("supported", "contradicted")


@pytest.mark.parametrize("trap", ["weight decay", "clipping"])
def test_a_recipe_edited_between_seeds_is_named(trap: str, place: Path, tmp_path: Path) -> None:
    change = {"weight decay": {"weight_decay": 0.5}, "clipping": {"max_grad_norm": 0.05}}[trap]
    checks, outcome = found(mixed(place, tmp_path, {"training": change}, seeds=(3,)))
    assert "optimiser" in checks and outcome not in ("supported", "contradicted")


def test_what_a_plugin_reads_from_the_environment_is_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAP_SCALE", "1")
    checks, outcome = found(mixed(place, tmp_path, {}))
    assert "code" in checks and outcome not in ("supported", "contradicted")


def test_a_plugin_edited_between_the_sides_is_named(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "trap.py"  # another text under the same names, which one process may not have at once
    other.write_text(PLUGIN.replace("trap_init", "trap_other").replace("1.5", "2.5"))
    change: Change = {"model": {"plugins": [str(other)], "init": "trap_other"}}
    checks, outcome = found(mixed(place, tmp_path, change))
    assert "code" in checks and outcome not in ("supported", "contradicted")


def test_a_text_edited_between_the_sides_is_named(place: Path, tmp_path: Path) -> None:
    write_text(place, "cOsts")
    try:
        checks, outcome = found(mixed(place, tmp_path, {}))
    finally:
        write_text(place)
    assert "data" in checks and outcome not in ("supported", "contradicted")


def lower(folder: Path) -> None:
    file = folder / "four-2" / "results.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, "final_val_loss": facts["final_val_loss"] - 0.5}))


def same_result(folder: Path) -> None:
    file = folder / "four-2" / "results.json"
    one = json.loads((folder / "four-1" / "results.json").read_text())
    file.write_text(json.dumps({**one, "seed": 2}))


@pytest.mark.parametrize(("edit", "check"), [(lower, "consistent"), (same_result, "seeds")])
def test_results_changed_by_hand_are_named(
    edit: Callable[[Path], None], check: str, place: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(place / "honest", tmp_path / "edited")
    edit(folder)
    checks, outcome = found(folder)
    assert check in checks and outcome not in ("supported", "contradicted")


HONEST: dict[str, Change] = {
    "the same again": {},
    "evaluation in other batches": {"training": {"per_device_eval_batch_size": 2}},
    "a step in two halves": {"training": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}},
    "other logging": {"training": {"logging_steps": 3}},
    "checkpoints": {"training": {"save_steps": 12}},
    "another sample": {"evaluation": {"prompt": "Item", "new_tokens": 5, "temperature": 0.5, "top_k": 3}},
    "defaults written out": {"training": {"adam_beta1": 0.9, "max_grad_norm": 1.0}},
    "an option of the plugin written out": {"model": {"init": {"type": "trap_init", "freeze": False}}},
    "a progress bar": {"training": {"disable_tqdm": True}},
    "activations computed again": {"training": {"gradient_checkpointing": True}},
    "compiled": {"training": {"torch_compile": True, "torch_compile_backend": "eager"}},
    "scored on the way": {"training": {"eval_strategy": "steps", "eval_steps": 8}},
    "a tracker's project": {"training": {"project": "other", "log_level": "error"}},
    "longer loading": {"training": {"dataloader_pin_memory": False}},
}
COMPUTED_OTHERWISE = (
    *("evaluation in other batches", "a step in two halves", "activations computed again", "compiled"),
    "scored on the way",
)


@pytest.mark.parametrize("what", HONEST)
def test_an_honest_difference_is_no_confound(what: str, place: Path, tmp_path: Path) -> None:
    checks, _outcome = found(mixed(place, tmp_path, HONEST[what]))
    assert checks <= {"still learning"}  # two dozen steps end nowhere
    if what in COMPUTED_OTHERWISE:
        assert "timing" in found(tmp_path / "mixed", "train_tokens_per_second")[0]
