"""One run: recipe in, run folder out.

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

from rich.console import Console
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PrinterCallback,
    ProgressCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.core.failures import Interrupted, TrainingError
from hf_arch.core.files import read_json
from hf_arch.core.quiet import quiet_libraries
from hf_arch.data import PreparedData, prepare_data
from hf_arch.data.validation_parts import validation_part
from hf_arch.evaluation.generation import SamplingOptions, generate_text
from hf_arch.evaluation.lengths import check_lengths, losses_by_length
from hf_arch.evaluation.metric import metric_results, parse_metrics, try_metrics
from hf_arch.evaluation.other_corpora import corpus_losses, read_corpora
from hf_arch.evaluation.special_tokens import prompt_ids
from hf_arch.evaluation.speed import measure_inference
from hf_arch.numerics import NUMERICS_VERSION
from hf_arch.optimizers.choose import choose_optimizer
from hf_arch.recipe.build import build_config, changed_initialisation
from hf_arch.recipe.recipe import RUN_FACTS, Recipe
from hf_arch.runs.files import CHECKPOINTS_DIR, CONFIG_FILE, METRICS_FILE, MODEL_DIR, RESULTS_FILE, read_metrics
from hf_arch.runs.model_report import model_report, render_model_report, two_columns
from hf_arch.runs.numbers import Reader, read_number
from hf_arch.runs.plugins import keep_plugins, with_run_plugins
from hf_arch.runs.provenance import (
    environment,
    order_fingerprint,
    provenance,
    tokenizer_fingerprint,
)
from hf_arch.runs.record import numbers_for, write_config, write_results
from hf_arch.training.arguments import build_arguments, check_model, check_optimizer
from hf_arch.training.callbacks import MetricsLog, ProgressLine
from hf_arch.training.checkpoints import divergence, where_to_go_on
from hf_arch.training.first_look import FIRST_LOOK, first_look, optimizer_facts
from hf_arch.training.identity import describe_run
from hf_arch.training.interruption import StopRequest
from hf_arch.training.launch import (
    LaunchRequest,
    Running,
    check_arguments,
    check_launch,
    check_metrics,
    check_running,
    is_main_process,
    read_request,
    requested_precision,
    running,
)
from hf_arch.training.memory import PeakMemory
from hf_arch.training.peak_flops import peak_flops
from hf_arch.training.precision import Precision, decided
from hf_arch.training.resume import (
    CheckpointKeeper,
    Continuation,
    check_finished,
    check_finished_recipe,
    describe_environment,
    extended_recipe,
    has_checkpoints,
    plan_continuation,
)
from hf_arch.training.slowdown import SlowdownWatch
from hf_arch.training.startup import training_rows
from hf_arch.training.step_watch import DEFAULT_MAX_SKIPPED_STEPS, StepWatch
from hf_arch.training.tracking import describe_trackers, tracked
from hf_arch.training.trainer import ArchTrainer
from hf_arch.training.trunk import BranchPoints, begin_from_trunk


def run_training(
    recipe: Recipe,
    output_dir: str | Path,
    resume: bool = False,
    quiet: bool = False,
    extend_to: int | None = None,
) -> dict[str, Any]:
    """Trains the one run that `recipe` describes and returns what it wrote to `results.json`.

    With `resume` an unfinished run in `output_dir` continues from its newest whole checkpoint (from the start where
    there is none), over the same data in the same order, after `hf_arch.training.resume` has compared the recipe with
    what the checkpoint was trained with; a finished run is returned as it is. `extend_to` resumes it too, finished or
    not, and trains it to so many optimiser steps in all.

    Raises:
        ConfigError: something in the recipe or about `output_dir` is wrong; nothing has been written then.
        Interrupted: SIGTERM or SIGINT; a checkpoint is saved, and `results.json` says `interrupted`.
        Exception: whatever stopped the training; `results.json` then says `failed` (or `interrupted`) and why.
    """
    folder = Path(output_dir)
    resume = resume or extend_to is not None
    request = read_request()
    check_launch(request)
    if recipe.experiment.is_set:
        raise ConfigError("experiment: the recipe declares several runs; use `hf-arch run`, or name one by --run")
    if is_main_process():  # the others would find what it has begun to write
        check_folder(folder, resume)
    if resume:
        recipe = with_run_plugins(recipe, folder)
    finished = resume and extend_to is None and is_finished(folder)
    if recipe.probe is not None or (finished and not has_checkpoints(folder / CHECKPOINTS_DIR)):
        if extend_to is not None:
            raise ConfigError(f"--extend-to: {extend_to} steps, but a probe keeps no checkpoints to go on from")
        if finished:
            check_finished_recipe(folder, recipe)
            return read_json(folder / RESULTS_FILE)
        if request.processes > 1:
            raise ConfigError(f"probe: is learned by one process, and {request.processes} were launched")
        from hf_arch.training.probe_run import run_probe

        return run_probe(recipe, folder, quiet)
    build_config(recipe)  # a mistake in the model section shows before minutes of data preparation
    precision = requested_precision(recipe.training, request, _decided_precision(folder))
    data = prepare_data(recipe.data)
    config = build_config(recipe, data.tokenizer)
    check_lengths(recipe.evaluation.lengths, config, data.validation)
    check_metrics(parse_metrics(recipe.evaluation.metrics), request)
    read_corpora(recipe.evaluation.corpora, recipe.data, data.tokenizer, _measured_tokens(recipe))
    with quiet_libraries():
        args = build_arguments(recipe.training, precision, folder / CHECKPOINTS_DIR, len(data.train), request.processes)
        order = data.order(args.data_seed if args.data_seed is not None else args.seed)
        fingerprint = order_fingerprint(order, data.fingerprint)
        identity = describe_run(recipe, data, config, args, precision.name, fingerprint)
        if finished:
            check_finished(folder / CHECKPOINTS_DIR, identity)
            return read_json(folder / RESULTS_FILE)
        sharding = "fsdp" if request.fsdp else "deepspeed" if request.deepspeed else ""
        surroundings = describe_environment(environment(args.device), args, sharding)
        continuation = Continuation(identity)
        if resume:
            begin_from_trunk(folder, identity, args)
            continuation = plan_continuation(folder / CHECKPOINTS_DIR, identity, surroundings, args, extend_to)
            recipe = extended_recipe(recipe, args, continuation)
        check_arguments(args, request, recipe.training)
        check_model(config, args)
        check_optimizer(config, args, recipe.training)
        keeper = CheckpointKeeper(continuation, surroundings)
        return _Run(recipe, folder, data, config, args, precision, keeper, quiet, request).execute()


class _Run:
    """The stages of one run over the things that all of them need."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        data: PreparedData,
        config: PreTrainedConfig,
        args: TrainingArguments,
        precision: Precision,
        keeper: CheckpointKeeper,
        quiet: bool,
        request: LaunchRequest,
    ) -> None:
        self.recipe, self.folder, self.data, self.config = recipe, folder, data, config
        self.validation = validation_part(data.validation, recipe.evaluation.rows)
        self.plugins = recipe.plugins
        self.plugin_copies: dict[str, Any] = {}
        self.args, self.precision, self.quiet, self.request = args, precision, quiet, request
        self.running: Running | None = None  # known once there is a trainer
        self.keeper, self.continuation = keeper, keeper.continuation
        self.report = model_report(config, recipe.data.sequence_length)
        self.name = recipe.experiment.name or self.report["architecture"]
        self.started = time.time()
        self.stop = StopRequest()
        self.builder = choose_optimizer(recipe.training)
        self.metrics = parse_metrics(recipe.evaluation.metrics)
        self.earlier_seconds = _earlier_seconds(folder) if self.continuation.checkpoint else 0.0
        self.is_main = is_main_process()
        self.first_look = _earlier_look(folder) if self.continuation.checkpoint else {}
        self.order = data.order(args.data_seed if args.data_seed is not None else args.seed)
        self.order_fingerprint = self.continuation.identity.data["order"]

    def execute(self) -> dict[str, Any]:
        """Runs every stage; whatever ends it, the results file says so."""
        try:
            if self.is_main:
                self.recipe, self.plugin_copies = keep_plugins(self.recipe, self.folder)
            self._write_config()
            self._write_results({"status": "running"}, "running")
        except OSError as error:
            raise ConfigError(f"--output-dir: {self.folder} cannot be written to: {error.strerror}") from error
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

    def _try_to_write(self, status: str, reason: str) -> None:
        """The end of a run that did not complete; where even that cannot be written, what ended it is told on."""
        with suppress(OSError):
            self._write_results({"status": status}, reason)

    def _train_and_measure(self) -> dict[str, Any]:
        memory = PeakMemory(self.args.device)
        set_seed(self.args.seed)
        model = AutoModelForCausalLM.from_config(self.config)
        trainer = ArchTrainer(
            model=model,
            args=self.args,
            order=self.order,
            train_dataset=self.data.train,
            eval_dataset=self.validation,
            eval_sequences=self.recipe.evaluation.sequences,
            start_step=self.continuation.step,
            keeper=self.keeper,
            zero_redundancy=self.recipe.training.get("zero_redundancy", False),
            watch=StepWatch(self.recipe.training.get("max_skipped_steps", DEFAULT_MAX_SKIPPED_STEPS)),
            stop=self.stop,
            builder=self.builder,
            metrics=self.metrics,
            flops_per_token=self.report["flops_per_token_train"],
            data_collator=default_data_collator,
            processing_class=self.data.tokenizer,
        )
        if not self.continuation.checkpoint:
            try_metrics(self.metrics, model, self.data.validation[0], self.args.device)
            self.first_look = first_look(model, self.data.validation[0]["input_ids"][None])
        self.running = running(trainer, self.precision)
        check_running(self.running, self.request)
        self._write_config()
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        log = self._metrics_log(trainer, memory)
        progress = ProgressLine(log, self.name)
        trainer.watch.tell = log.tell
        trainer.callback_handler.callbacks.insert(0, log)  # before the trackers, which get the numbers that it adds
        trainer.add_callback(SlowdownWatch(log))
        trainer.add_callback(BranchPoints(self.folder))
        if not self.quiet:
            self._print_continuation()
            trainer.add_callback(progress)
            self._print_report(trainer, self.continuation.step)
        try:
            with self.stop.waiting_for_steps():
                checkpoint = self.continuation.checkpoint
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            progress.close()
        peak = memory.read()  # before evaluation and inference, which are no part of training
        return {**self._results(trainer, log), "peak_memory_bytes": peak}

    def _metrics_log(self, trainer: ArchTrainer, memory: PeakMemory) -> MetricsLog:
        peak = peak_flops(self.args.device, self.precision.dtype)
        return MetricsLog(
            self.folder / METRICS_FILE,
            tokens_per_step=trainer.global_batch_size * self.recipe.data.sequence_length,
            flops_per_token=self.report["flops_per_token_train"],
            peak_flops=None if peak is None else peak * self.args.world_size,
            peak_memory=memory.read,
            wall_seconds=self._wall_seconds,
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
            sequence_length=self.recipe.data.sequence_length,
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
        evaluation, steps = self.recipe.evaluation, trainer.state.global_step
        if 2 * log.skipped_steps >= steps:  # too short a run for the limit of skips in a row
            what = f"the loss became useless: {log.skipped_steps} of {steps} steps had to be skipped"
            raise divergence(what, steps, self.args)
        scored = trainer.score(self.validation, evaluation.final_sequences)
        if not math.isfinite(scored.loss):
            raise divergence(f"the validation loss became {scored.loss}", steps, self.args)
        trainer.save_model(str(self.folder / MODEL_DIR))  # every process takes part where the weights are sharded
        (self.folder / MODEL_DIR / "training_args.bin").unlink(missing_ok=True)  # a pickle, and it names folders
        numbers: dict[str, Any] = {
            "optimizer": optimizer_facts(trainer.optimizer),
            "final_train_loss": log.final_loss,
            "final_val_loss": scored.loss,
            "final_val_perplexity": scored.perplexity,
            "bits_per_byte": scored.bits_per_byte,
            "plugin_metrics": metric_results(
                self.metrics, trainer.measure(self.validation, evaluation.final_sequences or len(self.validation))
            ),
            "val_tokens": scored.tokens,
            "tokens_seen": steps * log.tokens_per_step,
            "steps": steps,
            "train_tokens_per_second": log.tokens_per_second,
            "mfu": log.mfu(log.tokens_per_second),
            "skipped_steps": log.skipped_steps,
            "loss_spikes": log.loss_spikes,
        }
        if not self.is_main:
            return numbers
        self.data.tokenizer.save_pretrained(str(self.folder / MODEL_DIR))
        return {**numbers, **self._inference(trainer)}

    def _inference(self, trainer: ArchTrainer) -> dict[str, Any]:
        """Speed of generation and a sample. Sharded weights (FSDP) cannot generate here; the keys are left out then."""
        evaluation, model = self.recipe.evaluation, trainer.accelerator.unwrap_model(trainer.model)
        if trainer.is_fsdp_enabled:
            return {}
        measured: dict[str, Any] = {}
        room = self.config.max_position_embeddings
        row = self.data.validation[0]["input_ids"]
        with trainer.accelerator.autocast():
            if evaluation.speed:
                tokens = max(2, min(evaluation.speed_tokens, len(row), room // 2))
                speed = measure_inference(model, row[None, :tokens], tokens)
                measured["prefill_tokens_per_second"] = speed.prefill
                measured["decode_tokens_per_second"] = speed.decode
            prompt = evaluation.prompt or self.data.tokenizer.decode(
                row[: min(16, room // 2)], skip_special_tokens=True
            )
            used = len(prompt_ids(self.data.tokenizer, prompt))
            options = SamplingOptions(
                max_new_tokens=max(1, min(evaluation.new_tokens, room - used)),
                temperature=evaluation.temperature,
                top_k=evaluation.top_k,
                seed=self.args.seed,
            )
            model.eval()
            generated = generate_text(model, self.data.tokenizer, prompt, options)
            tokens, window = _measured_tokens(self.recipe), self.recipe.data.sequence_length
            if evaluation.lengths:
                measured["loss_by_length"] = losses_by_length(model, self.data.validation, evaluation.lengths, tokens)
            if evaluation.corpora:
                texts = read_corpora(evaluation.corpora, self.recipe.data, self.data.tokenizer, tokens)
                measured["corpora"] = corpus_losses(model, self.data.tokenizer, texts, window)
        measured["sample"] = {"prompt": prompt, "text": generated.text}
        return measured

    def _write_config(self) -> None:
        if not self.is_main:
            return
        facts = {
            "name": self.name,
            "seed": self.args.seed,
            "global_batch_size": global_batch_size(self.args),
            "launch": None if self.running is None else self.running.to_dict(),
            "precision": self.precision.to_dict(),
            "data_fingerprint": self.data.fingerprint,
            "hf_arch": hf_arch.__version__,
            "numerics": NUMERICS_VERSION,
            "config": json.loads(self.config.to_json_string(use_diff=False)),
            "changes": self._changes(),
            "plugins": self.plugin_copies,
        }
        write_config(self.folder, self.recipe, facts, data_fingerprint=self.data.fingerprint)

    def _changes(self) -> list[dict[str, Any]]:
        """What was changed since the run was begun, each with its step."""
        return [dataclasses.asdict(change) for change in self.continuation.changes]

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
            "sequence_length": self.recipe.data.sequence_length,
            "data_fingerprint": self.data.fingerprint,
            "tokenizer_fingerprint": tokenizer_fingerprint(self.data.tokenizer),
            "order_fingerprint": self.order_fingerprint,
            "changes": self._changes(),
            "init_overridden": bool(changed_initialisation(self.recipe, self.config)),
            "attribution": self.data.attribution,
            **self.first_look,
            **numbers,
            "wall_seconds": self._wall_seconds(),
            "provenance": {**provenance(self.args.device, self.plugins), "exit_reason": reason},
        }
        if self.is_main:
            return write_results(self.folder, results)
        return results


def _measured_tokens(recipe: Recipe) -> int:
    """Tokens of text on which lengths and other corpora are measured."""
    return (recipe.evaluation.sequences or 256) * recipe.data.sequence_length


def print_results(results: dict[str, Any], folder: str | Path) -> None:
    """The run's numbers in a few lines on stdout, and where everything lies; by the first process alone."""
    if not is_main_process():
        return
    rows = [
        (number.label, number.show(results[number.key]))
        for number in numbers_for(Reader.SUMMARY)
        if results.get(number.key) is not None
    ]
    measured = (results.get("plugin_metrics") or {}).items()
    extra = [
        (number.label, number.show(facts["value"])) for key, facts in measured if (number := read_number(key, facts))
    ]
    Console().print(two_columns(f"{results['name']}: {results['status']}", [*rows, *extra, ("folder", str(folder))]))


def check_folder(folder: Path, resume: bool) -> None:
    """Raises `ConfigError` where `folder` cannot take this run: it is a file, or holds a run that is not to be
    continued.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output-dir: {folder} is a file")
    if not resume and (folder / CONFIG_FILE).exists():
        state = "finished" if is_finished(folder) else "unfinished"
        raise ConfigError(f"--output-dir: {folder} holds a run already ({state}); add --resume, or name another folder")


def global_batch_size(args: TrainingArguments) -> int:
    """Sequences in one optimiser step, over all processes and accumulation steps."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` completed."""
    results = folder / RESULTS_FILE
    return results.is_file() and read_json(results).get("status") == "completed"


def _earlier_look(folder: Path) -> dict[str, Any]:
    """What was measured before the first step of a run that goes on."""
    results = folder / RESULTS_FILE
    written = read_json(results) if results.is_file() else {}
    return {key: written[key] for key in FIRST_LOOK if key in written}


def _decided_precision(folder: Path) -> Precision | None:
    """What `auto` was for the run in `folder` before: its set decided it, or the run itself when it was begun."""
    config, results = folder / CONFIG_FILE, folder / RESULTS_FILE
    if config.is_file() and (before := decided((read_json(config).get(RUN_FACTS) or {}).get("precision"))) is not None:
        return before
    name = read_json(results).get("precision") if results.is_file() else None
    return decided({"name": name, "reason": "the run was begun in it"})


def _earlier_seconds(folder: Path) -> float:
    """What the run has taken so far, also where it was killed: then the last row of its metrics knows."""
    results = folder / RESULTS_FILE
    written = [read_json(results)] if results.is_file() else []
    return max(
        (float(row.get("wall_seconds") or 0.0) for row in [*written, *read_metrics(folder / METRICS_FILE)]), default=0.0
    )
