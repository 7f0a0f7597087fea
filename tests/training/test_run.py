"""One run from recipe to run folder: what the folder holds, how it resumes, how it fails."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_arch.core.errors import ConfigError
from hf_arch.core.failures import TrainingError
from hf_arch.data import prepare_data
from hf_arch.recipe.recipe import Recipe, load_recipe
from hf_arch.runs.files import read_metrics
from hf_arch.runs.record import RunRecord
from hf_arch.training.callbacks import MetricsLog
from hf_arch.training.checkpoint_record import RECORD_FILE
from hf_arch.training.checkpoints import newest_checkpoint
from hf_arch.training.run import run_training
from tests.training.tiny import recipe_values

RESULT_KEYS = {
    "final_train_loss", "final_val_loss", "final_val_perplexity", "bits_per_byte", "params_total", "tokens_seen",
    "train_tokens_per_second", "decode_tokens_per_second", "peak_memory_bytes", "flops_per_token", "wall_seconds",
    "status", "provenance",
}  # fmt: skip


def recipe(text: Path, **sections: dict[str, Any]) -> Recipe:
    return Recipe.from_dict(recipe_values(text, **sections))


def train(recipe: Recipe, folder: Path, resume: bool = False) -> dict[str, Any]:
    return run_training(recipe, folder, resume=resume, quiet=True)


def losses(folder: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row}


def test_results_hold_the_contract(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert set(results) >= RESULT_KEYS
    assert results["status"] == "completed"
    assert results["tokens_seen"] == 6 * 4 * 32
    assert results["final_val_perplexity"] == pytest.approx(math.exp(results["final_val_loss"]))
    assert results["train_tokens_per_second"] > 0
    assert results["decode_tokens_per_second"] > 0
    assert results["provenance"]["exit_reason"] == "completed"
    assert results["sample"]["text"]
    assert results["order_fingerprint"] and results["tokenizer_fingerprint"]
    assert results["init_overridden"] is False
    assert RunRecord.load(finished).completed and RunRecord.load(finished).edited == []


def test_metrics_hold_the_contract(finished: Path) -> None:
    rows = read_metrics(finished / "metrics.jsonl")
    logged = [row for row in rows if "loss" in row]
    assert [row["step"] for row in logged] == [1, 2, 3, 4, 5, 6]
    for row in logged:
        assert row["tokens_seen"] == row["step"] * 4 * 32
        assert row["tokens_per_second"] > 0 and row["mfu"] > 0 and row["grad_norm"] > 0 and row["learning_rate"] >= 0
    assert [row["step"] for row in rows if "val_loss" in row] == [3, 6]


def test_the_loss_starts_at_chance_and_falls(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    curve = losses(finished)
    vocabulary = results["components"]["vocabulary"]
    assert curve[1] == pytest.approx(math.log(int(vocabulary)), rel=0.05)
    assert curve[6] < curve[1]


def test_the_saved_model_is_the_one_that_was_measured(finished: Path, text: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    data = prepare_data(recipe(text).data)
    assert tokenizer.decode(data.validation[0]["input_ids"]) == data.tokenizer.decode(data.validation[0]["input_ids"])
    first = [data.validation[index] for index in range(8)]
    rows, following = (torch.stack([row[key] for row in first]) for key in ("input_ids", "shift_labels"))
    with torch.no_grad():
        loss = model(rows, labels=rows, shift_labels=following).loss.item()
    results = json.loads((finished / "results.json").read_text())
    assert results["final_val_loss"] == pytest.approx(loss, rel=1e-5)
    assert results["bits_per_byte"] == pytest.approx(data.validation.bits_per_byte(loss), rel=1e-5)
    assert not (finished / "model" / "training_args.bin").exists()


@pytest.mark.rest
def test_fingerprints_follow_the_seed_and_nothing_else(finished: Path, text: Path, tmp_path: Path) -> None:
    first = json.loads((finished / "results.json").read_text())
    changed = recipe(text, model={"hidden_size": 16, "initializer_range": 0.1}, training={"max_steps": 1, "seed": 3})
    other = train(changed, tmp_path / "other model")
    assert other["order_fingerprint"] == first["order_fingerprint"]
    assert other["tokenizer_fingerprint"] == first["tokenizer_fingerprint"]
    assert other["init_overridden"] is True
    other = train(recipe(text, training={"max_steps": 1, "seed": 4}), tmp_path / "other seed")
    assert other["order_fingerprint"] != first["order_fingerprint"]


@pytest.mark.rest
def test_weights_and_order_have_a_seed_each(text: Path, tmp_path: Path) -> None:
    """Either can be changed alone, both are recorded, and a resumed run has to have the same two."""
    first = train(recipe(text, training={"max_steps": 3}), tmp_path / "first")
    order = train(recipe(text, training={"max_steps": 1, "data_seed": 4}), tmp_path / "order")
    weights = train(recipe(text, training={"max_steps": 1, "seed": 4, "data_seed": 3}), tmp_path / "weights")
    assert [(run["seed"], run["data_seed"]) for run in (first, order, weights)] == [(3, 3), (3, 4), (4, 3)]
    assert first["init_fingerprint"] == order["init_fingerprint"] != weights["init_fingerprint"]
    assert first["order_fingerprint"] == weights["order_fingerprint"] != order["order_fingerprint"]
    with pytest.raises(ConfigError, match="data_seed"):
        train(recipe(text, training={"max_steps": 3, "data_seed": 4}), tmp_path / "first", resume=True)


def test_what_the_set_wrote_about_itself_stays(text: Path, tmp_path: Path) -> None:
    facts = {"baseline": "gpt2", "match": {"by": "flops", "tolerance": 0.01, "reference": "gpt2"}}
    (tmp_path / "experiment_config.json").write_text(json.dumps({"run": facts}))
    train(recipe(text, training={"max_steps": 1}), tmp_path, resume=True)
    run = RunRecord.load(tmp_path)
    assert {key: run.experiment[key] for key in facts} == facts


def test_the_config_file_is_a_recipe_that_repeats_the_run(finished: Path, tmp_path: Path) -> None:
    again = load_recipe(finished / "experiment_config.json")
    train(again, tmp_path / "again")
    assert losses(tmp_path / "again") == losses(finished)


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies while step `step` is logged."""
    original = MetricsLog.on_log

    def on_log(self: MetricsLog, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(MetricsLog, "on_log", on_log)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_run_equals_one_that_was_never_broken(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    """Bit for bit: same rows, same random numbers, same weights."""
    chosen = recipe(text, model={"residual_dropout": dropout})
    train(chosen, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            train(chosen, tmp_path / "broken")
    assert json.loads((tmp_path / "broken" / "results.json").read_text())["status"] == "interrupted"
    results = train(chosen, tmp_path / "broken", resume=True)
    assert results["status"] == "completed"
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    left, right = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("broken", "whole"))
    assert all(torch.equal(left[name], right[name]) for name in right)
    steps = [json.loads(line)["step"] for line in (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


@pytest.mark.rest
def test_evaluation_leaves_training_alone(text: Path, tmp_path: Path) -> None:
    for steps in (1, 6):
        train(recipe(text, model={"residual_dropout": 0.3}, training={"eval_steps": steps}), tmp_path / str(steps))
    assert losses(tmp_path / "1") == losses(tmp_path / "6")


@pytest.mark.rest
def test_a_run_broken_before_its_first_checkpoint_starts_over(
    text: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(text), tmp_path / "run")
    train(recipe(text), tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(finished)


@pytest.mark.rest
def test_a_run_goes_on_with_the_batch_that_it_was_begun_with(text: Path, tmp_path: Path) -> None:
    """The rows of a step follow from it; processes and accumulation may be exchanged for rows."""
    train(recipe(text, training={"max_steps": 3}), tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(ConfigError, match=r"2 gives 2 sequences a step with 1 process, .* with 4; nearest: 4"):
        train(recipe(text, training={"per_device_train_batch_size": 2}), tmp_path / "run", resume=True)
    exchanged = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3}
    assert train(recipe(text, training=exchanged), tmp_path / "run", resume=True)["status"] == "completed"


def test_sharded_checkpoints_are_for_the_strategy_that_wrote_them(finished: Path, text: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "results.json").unlink()
    record = folder / "checkpoints" / "checkpoint-6" / RECORD_FILE
    values = json.loads(record.read_text())
    values["environment"]["strategy"] = "fsdp"
    record.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="is one of fsdp, which only it can read"):
        train(recipe(text), folder, resume=True)


def test_a_half_written_checkpoint_is_passed_over(finished: Path, tmp_path: Path) -> None:
    checkpoints = shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    assert newest_checkpoint(checkpoints) == checkpoints / "checkpoint-6"
    (checkpoints / "checkpoint-6" / "trainer_state.json").write_text('{"global_st')
    assert newest_checkpoint(checkpoints) == checkpoints / "checkpoint-3"
    (checkpoints / "checkpoint-3" / "model.safetensors").unlink()
    assert newest_checkpoint(checkpoints) is None


def test_a_finished_run_is_not_trained_again(finished: Path, text: Path) -> None:
    before = (finished / "results.json").read_bytes()
    train(recipe(text), finished, resume=True)
    assert (finished / "results.json").read_bytes() == before
    with pytest.raises(ConfigError, match=r"contains a run already \(finished\); use --resume"):
        train(recipe(text), finished)


@pytest.mark.rest
def test_a_failure_is_written_down(text: Path, tmp_path: Path) -> None:
    """The loss explodes: the status says failed, the reason says where and what to try."""
    diverging = recipe(text, training={"learning_rate": 1e30, "warmup_steps": 0, "max_grad_norm": 0.0})
    with pytest.raises(TrainingError, match=r"lower training\.learning_rate"):
        train(diverging, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "failed"
    assert "5 of 6 steps had to be skipped" in results["provenance"]["exit_reason"]
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"model": {"hidden_sise": 3}}, "nearest: 'hidden_size'"),
        ({"model": {"architecture": "lama"}}, "nearest: 'llama'"),
        ({"model": {"num_attention_heads": 3}}, "num_attention_heads"),
        ({"model": {"vocab_size": 5}}, "too small for the tokenizer"),
        ({"data": {"corpus": "no/such/file.txt"}}, "no/such/file.txt"),
        ({"data": {"sequence_length": 100_000}}, "sequence_length"),
        ({"training": {"lr_scheduler_type": "cosine_with_min_lr"}}, "lr_scheduler_kwargs"),
        ({"training": {"precision": "fp16"}}, "training.precision"),
        ({"experiment": {"seeds": [1, 2]}}, "hf-arch run"),
    ],
)
def test_a_wrong_recipe_writes_nothing(
    text: Path, tmp_path: Path, sections: dict[str, dict[str, Any]], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        train(recipe(text, **sections), tmp_path / "run")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
