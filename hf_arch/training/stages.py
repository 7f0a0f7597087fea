"""The stages of one run: weights, a first look at them, training, the score, what is kept; and the run's files, which
say at any time how far it has come.

<output_dir>/experiment_config.json   the recipe (itself a recipe file), the model's config, the data's fingerprint
             metrics.jsonl            while it trains
             checkpoints/             of Trainer; `resume` continues from the newest whole one
             model/                   after success, with the tokenizer
             results.json             the numbers, the status, the provenance; "running" until the end is known
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    TrainingArguments,
    set_seed,
)

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.core.failures import Interrupted, TrainingError
from hf_arch.core.one_writer import only_writer
from hf_arch.core.plugin_files import end_run
from hf_arch.numerics import NUMERICS_VERSION
from hf_arch.optimizers.choose import choose_optimizer
from hf_arch.recipe.build import changed_initialisation
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import CHECKPOINTS_DIR, METRICS_FILE, MODEL_DIR
from hf_arch.runs.model_report import model_report, render_model_report, two_columns
from hf_arch.runs.plugins import keep_plugins, keep_read_files, read_files, recorded_files, text_files
from hf_arch.runs.provenance import provenance
from hf_arch.runs.record import write_config, write_results
from hf_arch.runs.registration import CLAIMS_FACT, claims_known
from hf_arch.training.between_steps import BetweenSteps
from hf_arch.training.callbacks import MetricsLog, ProgressLine
from hf_arch.training.checkpoint_keeper import CheckpointKeeper, LateEvaluation
from hf_arch.training.checkpoint_record import Change
from hf_arch.training.checkpoints import divergence, where_to_go_on
from hf_arch.training.earlier import earlier_look, earlier_seconds
from hf_arch.training.first_look import after_steps, first_look, optimizer_facts
from hf_arch.training.interruption import StopRequest
from hf_arch.training.last_look import LastLook
from hf_arch.training.launch import LaunchRequest, Running, check_running, is_main_process, running
from hf_arch.training.machine_load import MachineLoad
from hf_arch.training.memory import PeakMemory
from hf_arch.training.peak_flops import peak_flops
from hf_arch.training.precision import Precision
from hf_arch.training.schedule import rates_of
from hf_arch.training.slowdown import SlowdownWatch
from hf_arch.training.startup import training_rows
from hf_arch.training.step_watch import DEFAULT_MAX_SKIPPED_STEPS, StepWatch
from hf_arch.training.surroundings import Surroundings, saved_otherwise
from hf_arch.training.tasks.base import Task
from hf_arch.training.tracking import describe_trackers, tracked
from hf_arch.training.trainer import ArchTrainer
from hf_arch.training.trunk import BranchPoints
from hf_arch.training.unseen_parts import LookAgain, UnseenParts


class Stages:
    """The stages of one run over the things that all of them need."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        task: Task,
        args: TrainingArguments,
        precision: Precision,
        keeper: CheckpointKeeper,
        quiet: bool,
        request: LaunchRequest,
    ) -> None:
        self.recipe, self.folder, self.task, self.config = recipe, folder, task, task.config
        self.plugins = recipe.plugins
        self.plugin_copies: dict[str, Any] = {}
        self.config_written: dict[str, Any] | None = None
        self.args, self.precision, self.quiet, self.request = args, precision, quiet, request
        self.running: Running | None = None  # known once there is a trainer
        self.keeper, self.continuation = keeper, keeper.continuation
        self.report = model_report(self.config, task.sequence_length)
        self.name = recipe.experiment.name or self.report["architecture"]
        self.started = time.time()
        self.stop = StopRequest()
        self.builder = choose_optimizer(task.training)
        self.claims_known = claims_known(folder)
        self.earlier_files = recorded_files(folder) if self.continuation.checkpoint else {}
        self.earlier_seconds = earlier_seconds(folder) if self.continuation.checkpoint else 0.0
        self.is_main = is_main_process()
        self.first_look = earlier_look(folder) if self.continuation.checkpoint else {}
        self.order = task.order(args.data_seed if args.data_seed is not None else args.seed)
        self.order_fingerprint = self.continuation.identity.data["order"]

    def execute(self) -> dict[str, Any]:
        """Runs every stage; whatever ends it, the results file says so.

        Raises ConfigError where another process is training in the folder: both would write its files.
        """
        if not self.is_main:
            return self._execute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        with only_writer(self.folder, wait=False) as alone:
            if not alone:
                raise ConfigError(
                    f"--output-dir: another process is training in {self.folder}; wait for it, or name another folder"
                )
            return self._execute()

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(f"--output-dir: {self.folder} cannot be written to: {error.strerror}")

    def _execute(self) -> dict[str, Any]:
        try:
            if self.is_main:
                self.recipe, self.plugin_copies = keep_plugins(self.recipe, self.folder)
            self._write_config()
            self._write_results({"status": "running"}, "running")
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            with self.stop, tracked(self.args, self.folder, self.name):
                numbers = self._train_and_measure()
            return self._write_results({**numbers, "status": "completed"}, "completed")
        except (Interrupted, KeyboardInterrupt) as error:
            self._try_to_write("interrupted", str(error) or "interrupted by the user")
            raise
        except OSError as error:
            self._try_to_write("failed", f"{type(error).__name__}: {error}")
            raise TrainingError(f"{error}; {where_to_go_on(self.folder / CHECKPOINTS_DIR)}") from error
        except BaseException as error:
            self._try_to_write("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            end_run()

    def _try_to_write(self, status: str, reason: str) -> None:
        """The end of a run that did not complete; if even that cannot be written, the original exception propagates."""
        with suppress(OSError):
            self._write_results({"status": status}, reason)

    def _train_and_measure(self) -> dict[str, Any]:
        memory, load = PeakMemory(self.args.device), MachineLoad()
        set_seed(self.args.seed)
        model = AutoModelForCausalLM.from_config(self.config)
        self.task.prepare(model)
        gpu = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(gpu, enabled=self.task.keeps_random_numbers):
            trainer = self._trainer(model)  # which seeds them anew
            log = self._metrics_log(trainer, memory)
            progress = ProgressLine(log, self.name)
            self._set_up(trainer, log, progress)
        try:
            with self.stop.waiting_for_steps():
                checkpoint = self.continuation.checkpoint
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            progress.close()
        peak = memory.read()  # before evaluation and inference, which are no part of training
        return {**self._results(trainer, log), "peak_memory_bytes": peak, "machine_load": load.facts()}

    def _set_up(self, trainer: ArchTrainer, log: MetricsLog, progress: ProgressLine) -> None:
        """The first look, the check of what runs, the callbacks, and the start-up report."""
        self.unseen = UnseenParts(trainer.model, of_plugins=bool(self.plugins))
        self.between_steps = BetweenSteps(trainer.model) if self.plugins and not _is_sharded(trainer) else None
        self.surroundings = Surroundings(trainer)
        if not self.continuation.checkpoint:
            with self.task.alone(trainer.model):
                self.first_look = first_look(trainer.model, self.task.look())
        self.running = running(trainer, self.precision)
        check_running(self.running, self.request)
        self._write_config()
        if self.plugins:  # a run that is killed has recorded what they read while the model was built
            self._write_results({"status": "running"}, "running")
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.watch.on_event = log.record_event
        trainer.callback_handler.callbacks.insert(0, log)  # before the trackers, which get the numbers that it adds
        trainer.add_callback(SlowdownWatch(log))
        trainer.add_callback(LookAgain(self.unseen))
        trainer.add_callback(self.surroundings)
        if self.between_steps is not None:
            trainer.add_callback(self.between_steps)
        trainer.add_callback(BranchPoints(self.folder))
        if not self.quiet:
            self._print_continuation()
            trainer.add_callback(progress)
            self._print_report(trainer, self.continuation.step)
        if self.continuation.evaluation_due:
            trainer.add_callback(LateEvaluation(trainer, self.continuation.checkpoint))

    def _trainer(self, model: PreTrainedModel) -> ArchTrainer:
        training = self.task.training
        return self.task.trainer(
            model=model,
            args=self.args,
            order=self.order,
            start_step=self.continuation.step,
            keeper=self.keeper,
            zero_redundancy=training.get("zero_redundancy", False),
            watch=StepWatch(training.get("max_skipped_steps", DEFAULT_MAX_SKIPPED_STEPS)),
            stop=self.stop,
            builder=self.builder,
            flops_per_token=self.report["flops_per_token_train"],
            rates=rates_of(self.task.schedule(), self.args),
            **self.task.trainer_options(self.args),
        )

    def _metrics_log(self, trainer: ArchTrainer, memory: PeakMemory) -> MetricsLog:
        peak = peak_flops(self.args.device, self.precision.dtype)
        return MetricsLog(
            self.folder / METRICS_FILE,
            tokens_per_step=trainer.global_batch_size * self.task.sequence_length,
            flops_per_token=self.report["flops_per_token_train"],
            peak_flops=None if peak is None else peak * self.args.world_size,
            peak_memory=memory.read,
            wall_seconds=self._wall_seconds,
            evaluates_again=self.continuation.evaluation_due,
        )

    def _print_continuation(self) -> None:
        for line in self.continuation.said if self.is_main else ():
            print(line, file=sys.stderr, flush=True)

    def _print_report(self, trainer: ArchTrainer, start_step: int) -> None:
        if not self.is_main:
            return
        console = Console()
        console.print(render_model_report(self.report))
        rows = training_rows(
            self.args,
            self.precision,
            sequence_length=self.task.sequence_length,
            global_batch=trainer.global_batch_size,
            start_step=start_step,
            optimizer=self.builder.label,
        )
        assert self.running is not None
        if trackers := describe_trackers(self.args):
            rows.append(("trackers", trackers))
        console.print(two_columns("training", [("runs as", self.running.describe()), *rows]))

    def _results(self, trainer: ArchTrainer, log: MetricsLog) -> dict[str, Any]:
        """The measured numbers, and `model/`."""
        steps = trainer.state.global_step
        if 2 * log.skipped_steps >= steps:  # too short a run for the limit of skips in a row
            what = f"the loss became useless: {log.skipped_steps} of {steps} steps had to be skipped"
            raise divergence(what, steps, self.args)
        look = self._last_look(trainer)
        scores = self.task.score(trainer, log)
        if not math.isfinite(scores["final_val_loss"]):
            raise divergence(f"the validation loss became {scores['final_val_loss']}", steps, self.args)
        with self.task.alone(trainer.accelerator.unwrap_model(trainer.model)):
            seen: dict[str, Any] = {} if look is None else {**look.facts(), "unseen": self._unseen(trainer, look)}
            trainer.save_model(str(self.folder / MODEL_DIR))  # every process takes part where the weights are sharded
        if self.plugins and look is not None and self.is_main:
            seen["unseen"]["saved"] = saved_otherwise(look.model, self.folder / MODEL_DIR)
        (self.folder / MODEL_DIR / "training_args.bin").unlink(missing_ok=True)  # a pickle, and it names folders
        numbers: dict[str, Any] = {
            "optimizer": optimizer_facts(trainer.optimizer),
            "final_train_loss": log.final_loss,
            **scores,
            **seen,
            "tokens_seen": steps * log.tokens_per_step,
            "steps": steps,
            "train_tokens_per_second": log.tokens_per_second,
            "mfu": log.mfu(log.tokens_per_second),
            "skipped_steps": log.skipped_steps,
            "loss_spikes": log.loss_spikes,
        }
        if not self.is_main:
            return numbers
        self.task.save_beside(self.folder / MODEL_DIR)
        return {**numbers, **self.task.measure(trainer)}

    def _unseen(self, trainer: ArchTrainer, look: LastLook) -> dict[str, Any]:
        """What no configuration tells of the model, and of what stands around it."""
        between = {} if self.between_steps is None else self.between_steps.facts()  # before passes that may change them
        facts = self.unseen.facts(trainer.accelerator.unwrap_model(trainer.model), look.row, look.whole)
        return {**facts, **between, **self.surroundings.facts(), **look.of_a_batch()}

    def _last_look(self, trainer: ArchTrainer) -> LastLook | None:
        """None where the weights are sharded: one row is too little for every process."""
        if _is_sharded(trainer):
            return None
        with self.task.alone(model := trainer.accelerator.unwrap_model(trainer.model)):
            together = self.task.scored_together(trainer) if self.plugins else None
            return LastLook(model, self.task.look(), together, self.task.isolates_documents)

    def _write_config(self) -> None:
        if not self.is_main:
            return
        facts = {
            "name": self.name,
            "seed": self.args.seed,
            "global_batch_size": global_batch_size(self.args),
            "launch": None if self.running is None else self.running.to_dict(),
            "precision": self.precision.to_dict(),
            "data_fingerprint": self.task.fingerprint,
            "hf_arch": hf_arch.__version__,
            "numerics": NUMERICS_VERSION,
            "config": json.loads(self.config.to_json_string(use_diff=False)),
            "changes": self._changes(),
            "plugins": self.plugin_copies,
            CLAIMS_FACT: self.claims_known,
        }
        # The rows of a probe follow from its recipe, which is in the hash of a run's name already.
        points_to = None if self.recipe.probe is not None else self.task.fingerprint
        self.config_written = write_config(self.folder, self.recipe, facts, data_fingerprint=points_to)

    def _changes(self) -> list[dict[str, Any]]:
        """What was changed since the run was begun, each with its step; files of plugins too, as far as they are read
        by now."""
        changes = [dataclasses.asdict(change) for change in self.continuation.changes]
        files = read_files(self.plugins, self.recipe) if self.earlier_files else {}
        for name, before in self.earlier_files.items():
            if name in files and files[name].sha256 != before:
                now = files[name].sha256
                changes.append(dataclasses.asdict(Change(self.continuation.step, f"plugin file {name}", before, now)))
        return changes

    def _wall_seconds(self) -> float:
        return self.earlier_seconds + time.time() - self.started

    def _write_results(self, numbers: dict[str, Any], reason: str) -> dict[str, Any]:
        results = {
            "name": self.name,
            "architecture": self.report["architecture"],
            "architecture_name": self.report["name"],
            "components": self.report["components"],
            "hypothesis": self.recipe.experiment.hypothesis,
            "seed": self.args.seed,
            "data_seed": self.args.seed if self.args.data_seed is None else self.args.data_seed,
            "learning_rate": self.args.learning_rate,
            "precision": self.precision.name,
            "precision_measured": self.precision.measured,
            "launch": None if self.running is None else self.running.to_dict(),
            "params_total": self.report["params_total"],
            "params_trainable": self.report["params_trainable"],
            "params_active": self.report["params_active"],
            "params_embedding": self.report["params_embedding"],
            "flops_per_token": self.report["flops_per_token_train"],
            "state_bytes": self.report["state_bytes"],
            "sequence_length": self.task.sequence_length,
            "data_fingerprint": self.task.fingerprint,
            "tokenizer_fingerprint": self.task.tokenizer_fingerprint,
            "order_fingerprint": self.order_fingerprint,
            "changes": self._changes(),
            "init_overridden": bool(changed_initialisation(self.recipe, self.config)),
            "attribution": self.task.attribution,
            **after_steps(self.first_look),
            **numbers,
            "wall_seconds": self._wall_seconds(),
            "provenance": {
                **provenance(self.args.device, self.plugins),
                **self._plugin_files(),
                "exit_reason": reason,
            },
        }
        if self.is_main:
            return write_results(self.folder, results, self.config_written)
        return results

    def _plugin_files(self) -> dict[str, Any]:
        """{name: sha256} of what plugins have read so far, of which the run keeps copies; what of it is the corpus."""
        files = read_files(self.plugins, self.recipe)
        if self.is_main:
            keep_read_files(files, self.folder)
        hashes = {name: file.sha256 for name, file in files.items()}
        own = {name: file for name, file in files.items() if not file.earlier}
        facts = {"plugin_files": hashes, "plugin_text": text_files(own, self.recipe, self.plugins)}
        return {
            **facts,
            **({"plugin_files_earlier": sorted(files.keys() - own.keys())} if len(own) < len(files) else {}),
        }


def _is_sharded(trainer: ArchTrainer) -> bool:
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def global_batch_size(args: TrainingArguments) -> int:
    """Sequences in one optimiser step, over all processes and accumulation steps."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size
