"""`--resume` goes on only with what the checkpoint was trained with: every key of a recipe, one at a time."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from hf_arch.checkpoints.plugin_copies import choose_plugin_code
from hf_arch.core.errors import ConfigError
from hf_arch.core.plugins import separate_plugins
from hf_arch.data import DataOptions
from hf_arch.experiments.execution.worker import Suite
from hf_arch.experiments.planning.prepare import ReadyRun
from hf_arch.recipe.evaluation import EvaluationOptions
from hf_arch.recipe.recipe import Recipe
from hf_arch.recipe.training_section import RESERVED_TRAINING
from hf_arch.runs.files import read_metrics
from hf_arch.training import run as run_module
from hf_arch.training.arguments import DEFAULTS
from hf_arch.training.checkpoint_record import RECORD_FILE, CheckpointRecord
from hf_arch.training.identity import WITHOUT_EFFECT, compare
from hf_arch.training.run import run_training
from tests.training.tiny import recipe_values

QUICK = {"speed": False, "new_tokens": 1, "sequences": 4, "final_sequences": 4}
# As written by hand where a value of the right type is no valid one, or two keys belong together.
CHOSEN: dict[str, Any] = {
    "training.lr_scheduler_type": "linear",
    "training.optim": "adamw_torch",
    "training.precision": "bf16",
    "training.eval_strategy": "no",
    "training.save_strategy": "no",
    "training.logging_strategy": "no",
    "training.lr_scheduler_kwargs": {"num_cycles": 0.25},
    "training.dataloader_multiprocessing_context": "spawn",
    "training.report_to": "tensorboard",
    "training.hub_strategy": "end",
    "training.log_level": "error",
    "training.log_level_replica": "error",
    "data.mixture": None,  # filled with the text's path
    "data.tokenizer": "byte",
    "data.validation_fraction": 0.2,
    "data.sequence_length": 16,
    "data.max_train_tokens": 5_000,
    "data.max_validation_tokens": 1_000,
    "evaluation.temperature": 0.5,
    "training.save_steps": 2,
    "training.accelerator_config": {"non_blocking": True},
}
MODEL: dict[str, Any] = {
    "model.architecture": "gpt2",
    "model.hidden_size": 48,
    "model.num_hidden_layers": 1,
    "model.num_attention_heads": 4,
    "model.intermediate_size": 64,
    "model.tie_word_embeddings": False,
    "model.residual_dropout": 0.1,
    "model.initializer_range": 0.1,
    "model.norm": "layernorm",
    "model.vocab_size": 500,
    "model.max_position_embeddings": 64,
    "model.rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}


def values(text: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    return recipe_values(text, **{"evaluation": QUICK, **sections})


def changed(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.partition(".")
    return {**values, section: {**values[section], name: value}}


def resume(values: dict[str, Any], folder: Path, **options: Any) -> dict[str, Any]:
    return run_training(Recipe.from_dict(values), folder, resume=True, quiet=True, **options)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes, and when it was written."""
    return {
        str(path.relative_to(folder)): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def cut(whole: Path, copy: Path, step: int = 3) -> Path:
    """`copy` is the run as a kill after the checkpoint of `step` would have left it."""
    shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("model"))
    for checkpoint in (copy / "checkpoints").glob("checkpoint-*"):
        if int(checkpoint.name.partition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    results = json.loads((copy / "results.json").read_text())
    (copy / "results.json").write_text(json.dumps({**results, "status": "interrupted"}))
    rows = [row for row in read_metrics(copy / "metrics.jsonl") if row["step"] <= step]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return copy


def curve(folder: Path) -> list[tuple[Any, ...]]:
    keys = ("step", "loss", "learning_rate", "grad_norm", "val_loss", "skipped_steps", "event")
    return [tuple(row.get(key) for key in keys) for row in read_metrics(folder / "metrics.jsonl")]


def assert_equal_runs(run: Path, other: Path) -> None:
    """Bit for bit: rows, weights, and the results that are no times."""
    assert curve(run) == curve(other)
    left, right = (load_file(folder / "model" / "model.safetensors") for folder in (run, other))
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in right)
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (run, other))
    for key in ("final_train_loss", "final_val_loss", "bits_per_byte", "tokens_seen", "steps", "loss_spikes"):
        assert one.get(key) == two.get(key), key


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ARCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        run_training(Recipe.from_dict(values(text)), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def broken(whole: Path) -> Path:
    """Read by many tests: none of them may write to it."""
    return cut(whole, whole.parent / "broken")


class Passed(Exception):
    """The comparison is over, and nothing stands in the way of going on."""


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends a run where it would begin to write."""

    def execute(_run: Any) -> None:
        raise Passed

    monkeypatch.setattr(run_module.Stages, "execute", execute)


def another(hint: Any, value: Any) -> Any:
    """A value of the type that is not `value`."""
    options = [option for option in (typing.get_args(hint) or (hint,)) if option is not type(None)]
    if isinstance(value, bool) or (value is None and bool in options):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if int in options and float not in options else value / 2 if value else 0.5
    if isinstance(value, dict) or (value is None and any("dict" in str(option) for option in options)):
        return {"use_reentrant": False}
    if isinstance(value, (list, tuple)):
        return ["loss"]
    if float in options or int in options:
        return 2 if int in options else 0.5
    if isinstance(value, enum.Enum):
        return next(entry.value for entry in type(value) if entry is not value)
    return "another"


def every_key() -> Iterator[tuple[str, Any]]:
    """Each key of each section of a recipe with another value: from the schemas, so that a new key cannot be missed."""
    given = recipe_values(Path("text.txt"), evaluation=QUICK)
    hints = typing.get_type_hints(TrainingArguments)
    training = {f.name: f for f in dataclasses.fields(TrainingArguments) if f.init and f.name not in RESERVED_TRAINING}
    for name, field in training.items():
        default = field.default_factory() if callable(field.default_factory) else field.default  # type: ignore[misc]
        now = given["training"].get(name, DEFAULTS.get(name, default))
        yield f"training.{name}", another(hints[name], now)
    yield from {"training.precision": "bf16", "training.max_skipped_steps": 3, "training.zero_redundancy": True}.items()
    for section, kind in (("data", DataOptions), ("evaluation", EvaluationOptions)):
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            yield f"{section}.{field.name}", another(hints[field.name], given[section].get(field.name, field.default))
    yield from MODEL.items()


KEYS = {key: CHOSEN.get(key, value) for key, value in every_key()}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("key", KEYS)
def test_a_changed_key_is_refused_or_has_no_effect(text: Path, broken: Path, compared: None, key: str) -> None:
    before = contents(broken)
    value = {str(text): 1.0} if key == "data.mixture" else str(text.parent) if key == "data.corpus" else KEYS[key]
    try:
        resume(changed(values(text), key, value), broken)
    except Passed:
        assert key in WITHOUT_EFFECT or key in SAME_WHEN_RESOLVED, f"{key}={value!r} went on without a word"
    except ConfigError as error:
        assert "\n" not in str(error)
        assert key not in WITHOUT_EFFECT or key in NOT_POSSIBLE_HERE
        names = (key, key.partition(".")[2], "--resume", f"{key.partition('.')[0]}: ")  # the last: transformers' own
        assert any(name in str(error) for name in names), str(error)
    assert contents(broken) == before


# Changed as they are above, these resolve to what they were: what is compared is what the run would do.
SAME_WHEN_RESOLVED = {
    "data.vocab_size": "of a trained bpe; the tokenizer here is one of characters",
    "data.text_column": "of jsonl and parquet; the corpus here is a text",
    "data.corpus": "the folder that the text lies in, alone: the same text",
    "data.mixture": "of the same text alone",
    "training.do_eval": "set by eval_strategy",
    "training.use_cpu": "a machine without a GPU trains on its CPU anyway",
}
NOT_POSSIBLE_HERE = ("training.zero_redundancy", "training.dataloader_prefetch_factor")


def test_the_names_without_effect_are_keys() -> None:
    assert set(WITHOUT_EFFECT) <= set(KEYS)
    assert all(reason.strip() for reason in WITHOUT_EFFECT.values())


def test_what_is_without_effect_leaves_every_number_as_it_is(text: Path, whole: Path, tmp_path: Path) -> None:
    """All of them at once, but for what this process cannot have (trackers, sharing among one)."""
    left_out = {*NOT_POSSIBLE_HERE, "training.report_to", "training.num_train_epochs", "training.save_strategy"}
    left_out |= {"training.dataloader_multiprocessing_context", "training.dataloader_persistent_workers"}
    asked = values(text)
    for key in WITHOUT_EFFECT.keys() - left_out:
        asked = changed(asked, key, KEYS[key])
    asked = changed(asked, "training.dataloader_num_workers", 1)
    resume(asked, cut(whole, tmp_path / "run"))
    assert_equal_runs(tmp_path / "run", whole)
    saved = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert "checkpoint-4" in saved  # of the new save_steps, which Trainer would have taken from the old checkpoint


def test_every_recorded_fact_is_compared(broken: Path) -> None:
    """Also those that this machine cannot change, such as the precision."""
    begun = CheckpointRecord.read(broken / "checkpoints" / "checkpoint-3").identity
    for field in dataclasses.fields(begun):
        facts = getattr(begun, field.name)
        for key in facts if field.name != "recipe" else ():
            now = dataclasses.replace(begun, **{field.name: {**facts, key: "another"}})
            named = [difference.key for difference in compare(begun, now)]
            expected = [] if f"{field.name}.{key}" in WITHOUT_EFFECT else [key]
            assert [name for name in named if name.endswith(key)] == named and len(named) == len(expected), (key, named)


def test_an_option_that_only_one_version_knows_is_no_difference_unless_the_recipe_gives_it(broken: Path) -> None:
    begun = CheckpointRecord.read(broken / "checkpoints" / "checkpoint-3").identity
    newer = dataclasses.replace(
        begun, training={**begun.training, "new_option": 1}, model={**begun.model, "new_field": 1}
    )
    assert compare(begun, newer) == compare(newer, begun) == []
    given = dataclasses.replace(newer, recipe={**newer.recipe, "training.new_option": 1})
    assert [difference.key for difference in compare(begun, given)] == ["training.new_option"]


def test_a_finished_probe_is_not_given_out_as_another(tmp_path: Path) -> None:
    model = {"architecture": "gla", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    asked = {"model": model, "probe": {"task": "mqar"}, "training": {"learning_rate": 0.01}}
    (tmp_path / "experiment_config.json").write_text(json.dumps(Recipe.from_dict(asked).to_dict()))
    (tmp_path / "results.json").write_text(json.dumps({"status": "completed", "accuracy": 1.0}))
    before = contents(tmp_path)
    assert resume(asked, tmp_path)["accuracy"] == 1.0
    with pytest.raises(ConfigError, match=r"training\.learning_rate is 0\.5, was 0\.01"):
        resume(changed(asked, "training.learning_rate", 0.5), tmp_path)
    with pytest.raises(ConfigError, match=r"^--extend-to: .* no checkpoint to continue from"):
        resume(asked, tmp_path, extend_to=9)
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_run_of_a_set_is_refused_by_name_and_left_as_it_was(
    text: Path, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of its folder has no part in what is only logged, so the set takes it for the same run."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    folder = shutil.copytree(broken, tmp_path / "tiny_00")
    before = contents(folder)
    asked = Recipe.from_dict(changed(values(text), "training.logging_steps", 2))
    [failed] = Suite([ReadyRun("tiny", folder, asked.to_dict())], tmp_path).work()
    assert "training.logging_steps is 2, was 1" in failed.reason
    after = contents(folder)
    told = ("results.json", "experiment_config.json", "log.txt")
    assert {name: after[name] for name in before if name not in told} == {
        name: before[name] for name in before if name not in told
    }
    assert after["experiment_config.json"].split()[0] == before["experiment_config.json"].split()[0]


def test_the_message_names_key_both_values_and_what_to_do(text: Path, broken: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resume(changed(values(text), "training.learning_rate", 0.5), broken)
    assert str(caught.value) == (
        "--resume: checkpoint-3 was not trained so: training.learning_rate is 0.5, was 0.005; resume with the recipe "
        "it was trained with, or begin a new run in another folder"
    )


def test_a_finished_run_is_not_given_out_as_another(text: Path, whole: Path, tmp_path: Path) -> None:
    before = contents(whole)
    with pytest.raises(ConfigError, match=r"training\.weight_decay is 0\.5, was 0\.1"):
        resume(changed(values(text), "training.weight_decay", 0.5), whole)
    assert contents(whole) == before
    bare = shutil.copytree(whole, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    assert resume(values(text), bare)["status"] == "completed"
    with pytest.raises(ConfigError, match=r"is finished, and training\.weight_decay is 0\.5, was not set"):
        resume(changed(values(text), "training.weight_decay", 0.5), bare)


def test_an_edited_config_file_fools_nobody(text: Path, broken: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(broken, tmp_path / "run")
    asked = changed(values(text), "training.learning_rate", 0.5)
    config = json.loads((folder / "experiment_config.json").read_text())
    config["training"]["learning_rate"] = 0.5
    (folder / "experiment_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"learning_rate is 0\.5, was 0\.005"):
        resume(asked, folder)


def test_an_edited_text_is_refused(text: Path, broken: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.txt"
    moved.write_text(text.read_text().replace("king", "kings"))
    with pytest.raises(ConfigError, match=r"data\.corpus is .*moved\.txt"):
        resume(changed(values(text), "data.corpus", str(moved)), broken)


PLUGIN = """
from hf_arch.core.registry import NORMS
from torch import nn


@NORMS.register({name!r})
class Norm(nn.RMSNorm):
    def __init__(self, dim, eps):
        super().__init__(dim, eps)  # {comment}
"""


@pytest.mark.rest
def test_an_edited_plugin_is_refused_by_name(text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plugin = tmp_path / "my_norm.py"
    plugin.write_text(PLUGIN.format(name="norm of a resumed run", comment="first"))
    model = {"plugins": [str(plugin)], "norm": "norm of a resumed run"}
    asked = values(text, model=model, training={"max_steps": 2, "save_steps": 1, "save_total_limit": None})
    run_training(Recipe.from_dict(asked), tmp_path / "whole", quiet=True)
    folder = cut(tmp_path / "whole", tmp_path / "run", 1)
    before = contents(folder)
    plugin.write_text(PLUGIN.format(name="norm of a resumed run", comment="second"))
    with separate_plugins(), pytest.raises(ConfigError, match=r"model\.plugins: my_norm\.py is "):
        choose_plugin_code("current")
        resume(asked, folder)
    choose_plugin_code("run")
    assert contents(folder) == before
    with separate_plugins():  # by itself it goes on with the copy
        resume(asked, folder)
    assert "my_norm.py is not what run was trained with; the copy is used" in caplog.text
    assert_equal_runs(folder, tmp_path / "whole")


def remove(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / name).unlink()


def cut_short(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-100])


def of_another_run(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    save_file(
        {name: tensor + 1 for name, tensor in weights.items()}, checkpoint / "model.safetensors", {"format": "pt"}
    )


def newer(checkpoint: Path) -> None:
    record = json.loads((checkpoint / RECORD_FILE).read_text())
    (checkpoint / RECORD_FILE).write_text(json.dumps({**record, "format": 99}))


def torn(checkpoint: Path) -> None:
    (checkpoint / RECORD_FILE).write_text((checkpoint / RECORD_FILE).read_text()[:200])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove("optimizer.pt"), "has no optimizer state"),
        (remove("scheduler.pt"), "has no scheduler state"),
        (remove("rng_state.pth"), "has no random number state"),
        (remove("trainer_state.json"), "has no trainer state"),
        (remove("model.safetensors"), "has no weights"),
        (remove("config.json"), "has no config.json"),
        (remove(RECORD_FILE), f"has no {RECORD_FILE}"),
        (cut_short, "has a optimizer.pt that is cut short"),
        (of_another_run, "has a model.safetensors that is not the one it saved"),
        (newer, "was written by a newer hf_arch"),
        (torn, "cannot be read"),
    ],
)
def test_a_checkpoint_that_is_not_what_was_saved_is_refused(
    text: Path, broken: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    folder = shutil.copytree(broken, tmp_path / "run")
    damage(folder / "checkpoints" / "checkpoint-3")
    before = contents(folder)
    with pytest.raises(ConfigError) as caught:
        resume(values(text), folder)
    assert said in str(caught.value) and "checkpoint-3" in str(caught.value) and "\n" not in str(caught.value)
    assert contents(folder) == before


def test_a_checkpoint_of_weights_alone_is_refused(text: Path, tmp_path: Path) -> None:
    asked = values(text, training={"max_steps": 2, "save_steps": 1, "save_only_model": True})
    run_training(Recipe.from_dict(asked), tmp_path / "whole", quiet=True)
    folder = cut(tmp_path / "whole", tmp_path / "run", 1)
    with pytest.raises(ConfigError, match="has no optimizer state, no scheduler state, no random number state"):
        resume(asked, folder)


def test_a_checkpoint_whose_saving_was_cut_off_is_passed_over(text: Path, whole: Path, tmp_path: Path) -> None:
    folder = cut(whole, tmp_path / "run", 6)
    last = folder / "checkpoints" / "checkpoint-6"
    record = json.loads((last / RECORD_FILE).read_text())
    (last / RECORD_FILE).write_text(json.dumps({**record, "files": None}))
    (last / "trainer_state.json").write_text('{"global_st')
    resume(values(text), folder)
    assert_equal_runs(folder, whole)


@pytest.mark.rest
def test_a_copy_elsewhere_goes_on_and_so_does_a_run_resumed_twice(text: Path, whole: Path, tmp_path: Path) -> None:
    asked = values(text, training={"save_steps": 1, "save_total_limit": None})
    run_training(Recipe.from_dict(asked), tmp_path / "every", quiet=True)
    first = cut(tmp_path / "every", tmp_path / "first", 2)
    resume(asked, first)
    second = cut(first, tmp_path / "second", 4)
    resume(asked, second)
    assert_equal_runs(second, whole)


@pytest.mark.rest
def test_a_loss_that_is_logged_over_a_checkpoint_counts_every_step(text: Path, tmp_path: Path) -> None:
    """Trainer would forget what it had added up since the last logged step."""
    asked = values(text, training={"logging_steps": 4, "save_steps": 3})
    run_training(Recipe.from_dict(asked), tmp_path / "whole", quiet=True)
    resume(asked, cut(tmp_path / "whole", tmp_path / "run"))
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")


@pytest.mark.rest
def test_the_best_checkpoint_of_a_copied_run_is_its_own(text: Path, tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 0.5, "warmup_steps": 0}
    asked = values(text, training={"eval_steps": 2, "save_steps": 2, "save_total_limit": None, **best})
    run_training(Recipe.from_dict(asked), tmp_path / "whole", quiet=True)
    folder = cut(tmp_path / "whole", tmp_path / "run", 4)
    shutil.move(tmp_path / "whole" / "checkpoints", tmp_path / "elsewhere")
    resume(asked, folder)
    assert_equal_runs(folder, tmp_path / "whole")
    with pytest.raises(ConfigError, match="save_steps"):
        resume(changed(asked, "training.save_steps", 4), folder)


def test_another_version_is_a_change_kept_at_its_step(
    text: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cut(whole, tmp_path / "run")
    real = run_module.environment
    facts = lambda device: {**real(device), "versions": {**real(device)["versions"], "torch": "9.9.9"}}  # noqa: E731
    monkeypatch.setattr(run_module, "environment", facts)
    results = run_training(Recipe.from_dict(values(text)), folder, resume=True)
    [change] = results["changes"]
    assert (change["step"], change["key"], change["now"]) == (3, "environment.torch", "9.9.9")
    assert json.loads((folder / "experiment_config.json").read_text())["run"]["changes"] == [change]
    assert 'resumed at step 3: environment.torch is "9.9.9", was ' in capsys.readouterr().err


LENGTHS = {"save_steps": 3, "max_steps": 6, "eval_steps": 3}


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "schedule",
    [
        {"lr_scheduler_type": "cosine", "warmup_steps": 0.34},
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}},
    ],
    ids=lambda schedule: schedule["lr_scheduler_type"],
)
@pytest.mark.parametrize("finished", [True, False])
def test_an_extended_run_is_from_there_on_one_of_its_new_length(
    text: Path, tmp_path: Path, schedule: dict[str, Any], finished: bool
) -> None:
    asked = values(text, training={**LENGTHS, **schedule})
    begun, step = tmp_path / "begun", 6 if finished else 3
    run_training(Recipe.from_dict(asked), begun, quiet=True)
    warm_up = {"warmup_steps": 3} if schedule["lr_scheduler_type"] == "cosine" else {}
    long = values(text, training={**LENGTHS, **schedule, **warm_up, "max_steps": 9})
    run_training(Recipe.from_dict(long), tmp_path / "long", quiet=True)
    folder = begun if finished else cut(begun, tmp_path / "run")
    results = run_training(Recipe.from_dict(asked), folder, quiet=True, extend_to=9)
    rates = {row["step"]: row["learning_rate"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row}
    wanted = {
        row["step"]: row["learning_rate"] for row in read_metrics(tmp_path / "long/metrics.jsonl") if "loss" in row
    }
    assert results["steps"] == 9 and list(rates) == list(range(1, 10))
    assert {at: rate for at, rate in rates.items() if at > step} == {
        at: rate for at, rate in wanted.items() if at > step
    }
    if schedule["lr_scheduler_type"] == "constant" or (not finished and "kwargs" in str(schedule)):
        assert_equal_runs(folder, tmp_path / "long")  # the schedules had been the same so far
    [change] = results["changes"]
    assert (change["step"], change["begun"], change["now"]) == (step, 6, 9)
    assert schedule["lr_scheduler_type"] in change["note"]
    config = json.loads((folder / "experiment_config.json").read_text())
    assert config["training"]["max_steps"] == 9 and config["run"]["changes"] == [change]
    again = cut(folder, tmp_path / "again", 6)  # resumed with the recipe of old, or that of its folder
    if finished:
        return  # its checkpoint of step 6 does not know of the extension yet
    resume(asked, again)
    assert curve(again) == curve(folder)


@pytest.mark.parametrize(
    ("steps", "said"),
    [(2, "but 3 are done"), (3, "but 3 are done"), (5, "are fewer than the 6"), (6, "has 6 steps already")],
)
def test_no_extension_to_fewer_or_the_same_steps(text: Path, broken: Path, steps: int, said: str) -> None:
    before = contents(broken)
    with pytest.raises(ConfigError, match=f"^--extend-to: .*{said}"):
        resume(values(text), broken, extend_to=steps)
    assert contents(broken) == before


def test_an_extension_may_be_said_by_the_recipe_too(text: Path, broken: Path, compared: None) -> None:
    with pytest.raises(Passed):
        resume(changed(values(text), "training.max_steps", 9), broken, extend_to=9)


def test_an_extension_needs_a_checkpoint_and_declares_steps_alone(text: Path, broken: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--extend-to: .* has no checkpoint"):
        resume(values(text), tmp_path / "new", extend_to=9)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match=r"learning_rate is 0\.5, was 0\.005"):
        resume(changed(values(text), "training.learning_rate", 0.5), broken, extend_to=9)
    with pytest.raises(ConfigError, match="`--extend-to 9`"):
        resume(changed(values(text), "training.max_steps", 9), broken)
