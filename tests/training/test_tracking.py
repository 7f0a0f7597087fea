"""Trackers: every number reaches them, none is asked for in vain, and no key gets into a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_arch.core.errors import ConfigError
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import read_metrics
from hf_arch.training.gradient_norms import GROUPS
from hf_arch.training.run import run_training
from hf_arch.training.tracking import check_trackers, describe_trackers, tracked
from tests.training.test_trainer import make_trainer
from tests.training.tiny import recipe_values, write_recipe

ROOT = Path(__file__).parents[2]
QUICK = {"speed": False, "new_tokens": 1}
KEYS = {"WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567", "HF_TOKEN": "hf_ThisIsNoTokenOfAnybody"}


def train(text: Path, folder: Path, **training: Any) -> None:
    recipe = Recipe.from_dict(recipe_values(text, training=training, evaluation=QUICK))
    run_training(recipe, folder, quiet=True)


@pytest.mark.rest
def test_tensorboard_gets_what_metrics_get(text: Path, tmp_path: Path) -> None:
    """Also the numbers of ours, in the run's folder, and a second run in its own."""
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="extra tensorboard"
    )
    for name in ("first", "second"):
        train(text, tmp_path / name, report_to="tensorboard")
    for name in ("first", "second"):
        events = accumulators.EventAccumulator(str(tmp_path / name / "tensorboard")).Reload()
        for key in ("loss", "tokens_per_second", "mfu", "peak_memory_bytes", "grad_norm_mixer", "skipped_steps"):
            written = {row["step"]: row[key] for row in read_metrics(tmp_path / name / "metrics.jsonl") if key in row}
            told = {event.step: event.value for event in events.Scalars(f"train/{key}")}
            assert told == pytest.approx(written, rel=1e-5) and len(told) == 6
        assert len(events.Scalars("eval/loss")) == 2


@pytest.mark.rest
def test_norms_of_the_groups_make_up_the_whole(text: Path, tmp_path: Path) -> None:
    for clip in (0.0, 0.01):  # as they are before clipping
        train(text, tmp_path / str(clip), max_grad_norm=clip, max_steps=2)
        row = next(row for row in read_metrics(tmp_path / str(clip) / "metrics.jsonl") if "loss" in row)
        norms = {group: row[f"grad_norm_{group}"] for group in GROUPS if f"grad_norm_{group}" in row}
        assert set(norms) == {"embeddings", "mixer", "ffn", "norms"}  # the head is tied
        assert sum(norm**2 for norm in norms.values()) ** 0.5 == pytest.approx(row["grad_norm"], rel=1e-4)
    assert row["grad_norm"] > 0.1


@pytest.mark.parametrize(
    ("name", "expected"),
    [("wandbb", "nearest: 'wandb'"), ("comet_ml", "is not installed"), (["none", "mlflow"], "pip install mlflow")],
)
def test_a_tracker_that_cannot_be_is_one_line(name: str | list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=r"^training\.report_to: ") as caught:
        check_trackers(name)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "wandb (offline: no key)"), (KEYS, "wandb"), ({**KEYS, "WANDB_MODE": "disabled"}, "wandb (disabled)")],
)
def test_wandb_is_offline_without_a_key(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    args = make_trainer(text, tmp_path)[0].args
    args.report_to = ["wandb"]
    before = dict(os.environ)
    with tracked(args, tmp_path, "a name"):
        assert describe_trackers(args) == expected
        assert (args.run_name, args.project) == ("a name", "hf-arch")
    assert dict(os.environ) == before


def test_a_key_is_no_part_of_a_recipe() -> None:
    with pytest.raises(ConfigError, match=r"training\.hub_token: .* HF_TOKEN"):
        Recipe.from_dict({"model": {"architecture": "llama"}, "training": {"hub_token": KEYS["HF_TOKEN"]}})


@pytest.mark.slow
def test_keys_of_the_env_file_are_read_and_written_nowhere(text: Path, tmp_path: Path) -> None:
    """`.env` of the working folder reaches the trackers; no file that the run leaves holds a key."""
    trackers = ["tensorboard"]
    try:
        import wandb  # noqa: F401

        trackers.append("wandb")
    except ImportError:
        pass
    work = tmp_path / "work"
    work.mkdir()
    (work / ".env").write_text(
        "WANDB_MODE=offline\nHF_ARCH_SEEN=yes\n" + "".join(f"{key}={KEYS[key]}\n" for key in KEYS)
    )
    recipe = write_recipe(tmp_path, text, training={"report_to": trackers, "max_steps": 3}, evaluation=QUICK)
    environment = {key: value for key, value in os.environ.items() if key not in (*KEYS, "WANDB_MODE")}
    command = [sys.executable, "-m", "hf_arch", "train", str(recipe), "--output-dir", "run"]
    done = subprocess.run(
        command, cwd=work, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    if "wandb" in trackers:
        assert "wandb (offline)" in done.stdout and list((work / "run" / "wandb").glob("offline-run-*"))
    files = [path for path in work.rglob("*") if path.is_file() and path.name != ".env"]
    assert len(files) > 10
    for secret in KEYS.values():
        assert secret not in done.stdout + done.stderr
        assert not [path for path in files if secret.encode() in path.read_bytes()]
