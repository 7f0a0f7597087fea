"""What a run survives: losses that are not numbers, disks that are full, signals, and being killed."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_arch.core.errors import ConfigError
from hf_arch.core.failures import Interrupted, TrainingError
from hf_arch.experiments.execution.worker import Suite
from hf_arch.experiments.planning.prepare import ReadyRun
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import read_metrics
from hf_arch.training.checkpoints import newest_checkpoint
from hf_arch.training.interruption import StopRequest
from hf_arch.training.run import run_training
from hf_arch.training.step_watch import StepWatch
from hf_arch.training.trainer import ArchTrainer
from tests.signals import hear_interrupts
from tests.training.test_trainer import make_trainer
from tests.training.tiny import recipe_values, write_recipe

ROOT = Path(__file__).parents[2]


def train(
    text: Path, folder: Path, resume: bool = False, extend_to: int | None = None, **training: Any
) -> dict[str, Any]:
    quick = {"speed": False, "new_tokens": 1}
    recipe = Recipe.from_dict(recipe_values(text, training=training, evaluation=quick))
    return run_training(recipe, folder, resume=resume, quiet=True, extend_to=extend_to)


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def rows(folder: Path, key: str) -> list[dict[str, Any]]:
    return [row for row in read_metrics(folder / "metrics.jsonl") if key in row]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the loss of the named steps (counted from 1) what is given: NaN, or infinite."""

    def spoil(*steps: int, value: float = float("nan")) -> None:
        original = ArchTrainer.compute_loss

        def compute_loss(self: ArchTrainer, *args: Any, **kwargs: Any) -> Any:
            loss = original(self, *args, **kwargs)
            return loss * value if self.state.global_step + 1 in steps else loss

        monkeypatch.setattr(ArchTrainer, "compute_loss", compute_loss)

    return spoil


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_loss_that_is_no_number_changes_nothing(
    text: Path, tmp_path: Path, spoil: Callable[..., None], value: float, max_grad_norm: float
) -> None:
    """Neither a weight nor a moment of the optimiser moves, with weight decay and with two micro-batches a step."""
    seen: dict[int, list[torch.Tensor]] = {}
    trainer, _ = make_trainer(
        text, tmp_path, gradient_accumulation_steps=2, max_steps=4, weight_decay=0.1, max_grad_norm=max_grad_norm
    )

    def snapshot(step: int) -> None:
        moments = [value for state in trainer.optimizer.state.values() for value in state.values()]
        seen[step] = [tensor.detach().clone() for tensor in (*trainer.model.parameters(), *moments)]

    class Snapshots(type(trainer.callback_handler.callbacks[0])):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            snapshot(state.global_step)

    trainer.add_callback(Snapshots())
    spoil(3, value=value)
    trainer.train()
    assert all(torch.equal(left, right) for left, right in zip(seen[2], seen[3], strict=True))
    assert not all(torch.equal(left, right) for left, right in zip(seen[3], seen[4], strict=True))


def test_skipped_steps_are_counted_and_leave_the_mean_loss_alone(
    text: Path, tmp_path: Path, spoil: Callable[..., None]
) -> None:
    train(text, tmp_path / "whole", logging_steps=3, logging_first_step=False)
    spoil(5)
    train(text, tmp_path / "run", logging_steps=3, logging_first_step=False)
    logged = rows(tmp_path / "run", "loss")
    assert [row["skipped_steps"] for row in logged] == [0, 1]
    assert logged[0]["loss"] == rows(tmp_path / "whole", "loss")[0]["loss"]
    assert 0 < logged[1]["loss"] < logged[0]["loss"]
    assert [(row["step"], row["event"]) for row in rows(tmp_path / "run", "event")] == [(5, "skipped step")]
    assert results(tmp_path / "run")["skipped_steps"] == 1
    assert results(tmp_path / "run")["status"] == "completed"


def test_too_many_skipped_steps_stop_the_run_at_its_last_checkpoint(
    text: Path, tmp_path: Path, spoil: Callable[..., None]
) -> None:
    spoil(4, 5, 6)
    with pytest.raises(TrainingError, match="3 steps in a row were skipped") as caught:
        train(text, tmp_path / "run", max_skipped_steps=2)
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-3"
    assert str(caught.value).endswith(f"the last good checkpoint is {checkpoint}")
    assert "\n" not in str(caught.value)
    assert newest_checkpoint(checkpoint.parent) == checkpoint
    assert results(tmp_path / "run")["status"] == "failed"


def test_a_run_that_skipped_most_of_its_steps_failed(text: Path, tmp_path: Path, spoil: Callable[..., None]) -> None:
    spoil(2, 3, 4, 5)
    with pytest.raises(TrainingError, match="4 of 6 steps had to be skipped"):
        train(text, tmp_path / "run")
    assert results(tmp_path / "run")["status"] == "failed"


@pytest.mark.rest
def test_skipped_steps_are_remembered_over_a_resumption(
    text: Path, tmp_path: Path, spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(2)
    with monkeypatch.context() as patch:
        send_at(5, signal.SIGTERM, patch)
        with pytest.raises(Interrupted):
            train(text, tmp_path / "run")
    assert train(text, tmp_path / "run", resume=True)["skipped_steps"] == 1


def test_spikes_are_told_once_and_noise_is_not() -> None:
    events: list[dict[str, Any]] = []
    watch = StepWatch(on_event=events.append)
    noise = torch.Generator().manual_seed(0)
    for step in range(1, 301):
        loss = 3.0 + 0.05 * torch.randn(1, generator=noise).item() + (2.0 if 200 <= step < 205 else 0.0)
        assert watch.allows(step, loss, 1.0)
    assert [(event["step"], event["event"]) for event in events] == [(200, "loss spike")]
    assert events[0]["step_loss"] > 4.5 and events[0]["usual_loss"] == pytest.approx(3.0, abs=0.05)


def test_a_falling_loss_is_no_spike() -> None:
    events: list[dict[str, Any]] = []
    watch = StepWatch(on_event=events.append)
    for step in range(1, 500):
        watch.allows(step, 2.0 + 6.0 * 0.98**step, 1.0)
    assert events == []


def full_disk(*_args: Any, **_kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("where", ["_save_optimizer_and_scheduler", "save_model"])
def test_a_full_disk_leaves_the_last_good_checkpoint(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    original = getattr(ArchTrainer, where)

    def save(self: ArchTrainer, folder: str, **kwargs: Any) -> None:
        original(self, folder, **kwargs)  # half of the checkpoint is there when the disk is full
        if folder.endswith("checkpoint-6"):
            full_disk()

    with monkeypatch.context() as patch:
        patch.setattr(ArchTrainer, where, save)
        with pytest.raises(TrainingError, match="No space left on device") as caught:
            train(text, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(f"the last good checkpoint is {checkpoints / 'checkpoint-3'}")
    assert [folder.name for folder in checkpoints.iterdir()] == ["checkpoint-3"]
    assert results(tmp_path / "run")["status"] == "failed"
    assert train(text, tmp_path / "run", resume=True)["status"] == "completed"


def test_metrics_that_cannot_be_written_name_the_checkpoint(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(rows(tmp_path / "run", "loss")) == 4:
            full_disk()

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(TrainingError, match=r"No space left on device; the last good checkpoint is .*checkpoint-3$"):
        train(text, tmp_path / "run")


def test_a_folder_that_cannot_be_written_is_a_mistake(text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written to") as caught:
        train(text, tmp_path / "file" / "run")
    assert str(caught.value).startswith("--output-dir: ")


def send_at(step: int, number: int, monkeypatch: pytest.MonkeyPatch, times: int = 1) -> None:
    """The process gets the signal in the middle of step `step`."""
    original = ArchTrainer.training_step

    def training_step(self: ArchTrainer, *args: Any, **kwargs: Any) -> Any:
        for _ in range(times if self.state.global_step + 1 == step else 0):
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ArchTrainer, "training_step", training_step)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_its_step_and_the_run_goes_on_from_there(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    train(text, tmp_path / "whole")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        send_at(4, number, patch)
        with pytest.raises(Interrupted) as caught:
            train(text, tmp_path / "run")
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").name == "checkpoint-4"  # type: ignore[union-attr]
    assert results(tmp_path / "run")["status"] == "interrupted"
    assert number.name in results(tmp_path / "run")["provenance"]["exit_reason"]
    assert train(text, tmp_path / "run", resume=True)["status"] == "completed"
    losses = [{row["step"]: row["loss"] for row in rows(tmp_path / name, "loss")} for name in ("run", "whole")]
    assert losses[0] == losses[1]


def test_an_interrupt_that_the_parent_ignores_stays_ignored() -> None:
    """As nohup and a shell's background mean it; SIGTERM stops the run there."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop, stop.waiting_for_steps():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert stop.received is None and signal.getsignal(signal.SIGTERM) == stop._handle
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_outside_of_training_stops_at_once(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArchTrainer, "score", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(text, tmp_path / "run", eval_strategy="no")
    assert results(tmp_path / "run")["status"] == "interrupted"


@pytest.mark.rest
def test_wall_time_adds_up_where_the_run_was_killed(text: Path, tmp_path: Path) -> None:
    """A killed run leaves results that say "running": then the last row of its metrics knows the time."""
    train(text, tmp_path / "run", max_steps=3)
    killed = results(tmp_path / "run") | {"status": "running", "wall_seconds": 0.0}
    (tmp_path / "run" / "results.json").write_text(json.dumps(killed))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "loss": 1.0, "wall_seconds": 1000.0}) + '\n{"step": 6, "lo')
    done = train(text, tmp_path / "run", extend_to=6, max_steps=3)
    assert 1000 < done["wall_seconds"] < 1100
    assert [row["step"] for row in rows(tmp_path / "run", "loss")] == [1, 2, 3, 4, 5, 6]


# From here on: real processes.

LONG = {"max_steps": 400, "save_steps": 20, "eval_strategy": "no", "logging_steps": 5, "save_total_limit": 3}


def start(recipe: Path, folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "hf_arch", "train", str(recipe), "--output-dir", str(folder), *arguments]
    options = {"preexec_fn": hear_interrupts, **options}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options
    )


def last_step(folder: Path) -> int:
    return max((row["step"] for row in rows(folder, "loss")), default=0)


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    end = time.monotonic() + 120
    while last_step(folder) < step:
        assert process.poll() is None and time.monotonic() < end, process.stderr and process.stderr.read()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_told_to_stop_leaves_with_the_code_of_its_signal(
    text: Path, tmp_path: Path, number: signal.Signals
) -> None:
    recipe, folder = write_recipe(tmp_path, text, training=LONG), tmp_path / "run"
    process = start(recipe, folder)
    wait_for_step(process, folder, 25)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.splitlines()[-1].startswith(f"error: interrupted by {number.name}")
    assert "Traceback" not in said
    state = json.loads((newest_checkpoint(folder / "checkpoints") / "trainer_state.json").read_text())  # type: ignore[operator]
    assert state["global_step"] >= last_step(folder)  # nothing is lost
    assert start(recipe, folder, "--resume").wait(120) == 0
    assert results(folder)["status"] == "completed"


@pytest.mark.slow
def test_killed_at_any_moment_it_loses_no_more_than_the_steps_since_its_checkpoint(text: Path, tmp_path: Path) -> None:
    """Killed at five moments, and in the end equal to the run that was never touched."""
    recipe, folder = write_recipe(tmp_path, text, training={**LONG, "max_steps": 200}), tmp_path / "run"
    assert start(recipe, tmp_path / "whole").wait(120) == 0
    for kill_at in (15, 40, 41, 77, 120):
        process = start(recipe, folder, "--resume")
        wait_for_step(process, folder, kill_at)
        process.kill()
        process.wait()
        reached, spent = last_step(folder), max(row["wall_seconds"] for row in rows(folder, "loss"))
        checkpoint = newest_checkpoint(folder / "checkpoints")
        saved = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] if checkpoint else 0
        assert reached - saved <= LONG["save_steps"] + LONG["logging_steps"]  # the checkpoint may be half written
    assert start(recipe, folder, "--resume").wait(120) == 0
    assert results(folder)["wall_seconds"] > spent
    losses = [{row["step"]: row["loss"] for row in rows(path, "loss")} for path in (folder, tmp_path / "whole")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_one_line_and_keeps_the_checkpoint(text: Path, tmp_path: Path) -> None:
    """The limit on the size of files stands for a full disk: the optimiser's state no longer fits."""
    recipe, folder = write_recipe(tmp_path, text, training={**LONG, "max_steps": 20}), tmp_path / "run"
    assert start(recipe, folder).wait(120) == 0
    size = (folder / "checkpoints/checkpoint-20/optimizer.pt").stat().st_size

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1000, size - 1000))

    process = start(recipe, folder, "--extend-to", "40", preexec_fn=limit)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    last = said.splitlines()[-1]
    assert last.startswith("error: the checkpoint of step 40 could not be written") and "checkpoint-20" in last
    assert "Traceback" not in said
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-20"]
    assert start(recipe, folder, "--extend-to", "40").wait(120) == 0


@pytest.mark.slow
def test_a_run_of_a_set_that_is_told_to_stop_is_resumed(text: Path, tmp_path: Path) -> None:
    """By somebody else than the runner: it is no failure, and no second try is spent on it."""
    recipe = Recipe.from_dict(recipe_values(text, training=LONG))
    run = ReadyRun("tiny", tmp_path / "tiny_00", recipe.to_dict())
    said: list[str] = []

    def tell(run: ReadyRun, what: str) -> None:
        said.append(what)

    import threading

    os.environ["PYTHONPATH"] = str(ROOT)
    suite = Suite([run], tmp_path, report=tell)
    thread = threading.Thread(target=suite.work)
    thread.start()
    end = time.monotonic() + 120
    while last_step(run.folder) < 25 and time.monotonic() < end:
        time.sleep(0.05)
    child = subprocess.run(
        ["pgrep", "-f", f"hf_arch.experiments.execution.child train {run.folder}"], capture_output=True, text=True
    )
    os.kill(int(child.stdout.split()[0]), signal.SIGTERM)
    thread.join(120)
    assert said == [
        "starts",
        "interrupted by SIGTERM; --resume continues from the last checkpoint",
        "resumes",
        "completed",
    ]
    assert run.status == "completed"
