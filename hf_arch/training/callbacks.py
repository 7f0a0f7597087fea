"""What a run tells while it trains: `metrics.jsonl` for machines, a progress line on stderr for people.

`MetricsLog` writes one JSON object per logging step (`step`, `loss` in nats, `learning_rate`, `grad_norm`,
`grad_norm_<group>`, `loss_<name>` of auxiliary losses, which `loss` leaves out, `tokens_seen`, `tokens_per_second`,
`mfu`, `peak_memory_bytes`, `skipped_steps`, `wall_seconds`),
per evaluation (`step`, `val_loss`, with `val_perplexity` and `bits_per_byte`, or of a probe `val_accuracy` and
`val_accuracy_macro`, and `val_<name>` of plugins' metrics) and per event (`step`, `event`). The same numbers go to the
trackers that `training.report_to` names.

MFU = flops_per_token * tokens/s / (devices * peak FLOP/s), with the FLOPs that `hf_arch.cost` counts for this
architecture.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_arch.core.files import to_jsonable, write_atomic
from hf_arch.runs.files import read_metrics
from hf_arch.training.checkpoints import divergence

# What an evaluation writes, by the names of its metrics.
EVALUATED = {
    "eval_loss": "val_loss",
    "eval_perplexity": "val_perplexity",
    "eval_bits_per_byte": "bits_per_byte",
    "eval_accuracy": "val_accuracy",
    "eval_accuracy_macro": "val_accuracy_macro",
    "eval_runtime": "val_seconds",
}
METRIC = "eval_metric_"
"""Before the names of plugins' metrics."""


class TrainingClock:
    """Seconds spent on training alone: evaluation and saving are taken out, so that tokens/s compares across
    recipes.
    """

    def __init__(self) -> None:
        self.window_start = self.step_end = time.perf_counter()
        self.excluded = 0.0

    def restart(self) -> None:
        """Begins a new window now."""
        self.window_start = self.step_end = time.perf_counter()
        self.excluded = 0.0

    def mark_step(self) -> None:
        """The optimiser step is done; what follows until `exclude` is not training."""
        self.step_end = time.perf_counter()

    def exclude(self) -> None:
        """Evaluation or saving is done."""
        now = time.perf_counter()
        self.excluded += now - self.step_end
        self.step_end = now

    def window(self) -> float:
        """Training seconds since the window began."""
        return max(time.perf_counter() - self.window_start - self.excluded, 1e-9)


class MetricsLog(TrainerCallback):
    """Appends to `metrics.jsonl`, and keeps what the results need: the last loss and the median speed.

    `evaluates_again`: the step that the run goes on from will be evaluated, whatever an earlier try wrote of it."""

    def __init__(
        self,
        path: Path,
        *,
        tokens_per_step: int,
        flops_per_token: float,
        peak_flops: float | None,
        peak_memory: Callable[[], int | None],
        wall_seconds: Callable[[], float],
        evaluates_again: bool = False,
    ) -> None:
        self.path = path
        self.evaluates_again = evaluates_again
        self.tokens_per_step = tokens_per_step
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.peak_memory = peak_memory
        self.wall_seconds = wall_seconds
        self.is_main = True
        self.skipped_steps = self.loss_spikes = 0
        self.clock = TrainingClock()
        self.last_step = 0
        self.speeds: list[float] = []
        self.final_loss: float | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the logging windows; the first, which warms up and compiles, counts only where it is alone."""
        return statistics.median(self.speeds[1:] or self.speeds) if self.speeds else None

    def mfu(self, tokens_per_second: float | None) -> float | None:
        """Model FLOPs utilisation, a fraction; None where the peak of the device is not known."""
        if tokens_per_second is None or self.peak_flops is None:
            return None
        return self.flops_per_token * tokens_per_second / self.peak_flops

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drops what a broken run logged past the checkpoint it now resumes from, and starts the clock."""
        self.is_main = state.is_world_process_zero
        if self.is_main:
            step, again = state.global_step, self.evaluates_again
            kept = [
                row
                for row in (read_metrics(self.path) if step else [])
                if row["step"] <= step and not (again and row["step"] == step and "val_loss" in row)
            ]
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))
            self.final_loss = next((row["loss"] for row in reversed(kept) if "loss" in row), None)
            events = [row["event"] for row in kept if "event" in row]
            self.skipped_steps, self.loss_spikes = events.count("skipped step"), events.count("loss spike")
        self.last_step = state.global_step
        self.clock.restart()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.clock.mark_step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.clock.exclude()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        self.clock.exclude()
        if metrics and "eval_loss" in metrics:
            row = {name: metrics[key] for key, name in EVALUATED.items() if key in metrics}
            row |= {f"val_{key.removeprefix(METRIC)}": metrics[key] for key in metrics if key.startswith(METRIC)}
            self._write({"step": state.global_step, **row})
            if not math.isfinite(metrics["eval_loss"]):
                raise divergence(f"the validation loss became {metrics['eval_loss']}", state.global_step, args)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Only the rows of training: evaluation comes through `on_evaluate`, the closing summary goes to the
        results.
        """
        if not logs or "loss" not in logs:
            return
        steps = state.global_step - self.last_step
        speed = steps * self.tokens_per_step / self.clock.window()
        self.speeds.append(speed)
        self.last_step = state.global_step
        if math.isfinite(logs["loss"]):
            self.final_loss = logs["loss"]
        measured = {
            "tokens_seen": state.global_step * self.tokens_per_step,
            "tokens_per_second": speed,
            "processes": args.world_size,
            "mfu": self.mfu(speed),
            "peak_memory_bytes": self.peak_memory(),
            "skipped_steps": self.skipped_steps,
            "wall_seconds": self.wall_seconds(),
        }
        logs.update({key: value for key, value in measured.items() if value is not None})  # for the trackers
        losses = {"loss": logs["loss"]} if math.isfinite(logs["loss"]) else {}  # none where every step was skipped
        own = {key: logs.get(key) for key in ("epoch", "learning_rate", "grad_norm")}
        groups = {key: value for key, value in logs.items() if key.startswith(("grad_norm_", "loss_"))}
        self._write({"step": state.global_step, **losses, **own, **groups, **measured})
        self.clock.restart()

    def record_event(self, row: dict[str, Any]) -> None:
        """Writes an event of `StepWatch` and counts it."""
        self.skipped_steps += row["event"] == "skipped step"
        self.loss_spikes += row["event"] == "loss spike"
        self._write(row)
        if self.is_main:
            numbers = ", ".join(f"{key.replace('_', ' ')} {row[key]}" for key in row if key not in ("step", "event"))
            print(f"step {row['step']}: {row['event']}: {numbers}", file=sys.stderr, flush=True)

    def _write(self, row: dict[str, Any]) -> None:
        if not self.is_main:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(to_jsonable(row), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


class ProgressLine(TrainerCallback):
    """A live bar with loss and tokens/s on a terminal; one plain line a logging step where stderr is a file."""

    def __init__(self, log: MetricsLog, label: str) -> None:
        self.log = log
        self.label = label
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.task: Any = None
        self.val_loss = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"), TimeElapsedColumn(), TimeRemainingColumn(),
            )  # fmt: skip
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=state.max_steps, completed=state.global_step, numbers="")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar:
            self.bar.update(self.task, completed=state.global_step)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        if metrics and "eval_loss" in metrics:
            self.val_loss = f"  val {metrics['eval_loss']:.3f}"
            score = (
                f"perplexity {metrics['eval_perplexity']:.2f}"
                if "eval_perplexity" in metrics
                else f"accuracy {metrics['eval_accuracy']:.3f}"
            )
            self._print(state, f"val loss {metrics['eval_loss']:.4f}, {score}")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        speed = self.log.speeds[-1]
        if self.bar:
            self.bar.update(self.task, numbers=f"loss {logs['loss']:.3f}{self.val_loss}  {speed:,.0f} tok/s")
        left = timedelta(seconds=round((state.max_steps - state.global_step) * self.log.tokens_per_step / speed))
        rate = f"lr {logs['learning_rate']:.2e}, {speed:,.0f} tokens/s"
        self._print(state, f"loss {logs['loss']:.4f}, {rate}, {left} left")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bar off the screen, also after a failure."""
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _print(self, state: TrainerState, text: str) -> None:
        if state.is_world_process_zero and not self.console.is_terminal:
            print(f"{self.label}: step {state.global_step}/{state.max_steps}: {text}", file=sys.stderr, flush=True)
