"""One run: recipe in, run folder out (`hf_arch.training.stages` says what it holds), whatever its task is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import read_json
from hf_arch.core.quiet import quiet_libraries
from hf_arch.evaluation.metric import parse_metrics
from hf_arch.recipe.build import build_config
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import CHECKPOINTS_DIR, RESULTS_FILE
from hf_arch.runs.model_report import two_columns
from hf_arch.runs.numbers import Reader, read_number
from hf_arch.runs.plugins import check_kept_files, with_run_plugins
from hf_arch.runs.provenance import environment
from hf_arch.runs.record import numbers_for
from hf_arch.training.arguments import build_arguments, check_model, check_optimizer
from hf_arch.training.checkpoint_keeper import CheckpointKeeper
from hf_arch.training.describe_run import describe_run
from hf_arch.training.earlier import check_folder, decided_precision, is_finished
from hf_arch.training.launch import (
    check_arguments,
    check_launch,
    check_metrics,
    is_main_process,
    read_request,
    requested_precision,
)
from hf_arch.training.resume import (
    Continuation,
    check_finished,
    check_finished_recipe,
    describe_environment,
    extended_recipe,
    has_checkpoints,
    plan_continuation,
)
from hf_arch.training.stages import Stages
from hf_arch.training.tasks.language_model import LanguageModelTask
from hf_arch.training.tasks.probe import ProbeTask
from hf_arch.training.trunk import begin_from_trunk


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
        check_kept_files(folder)
        recipe = with_run_plugins(recipe, folder)
    finished = resume and extend_to is None and is_finished(folder)
    if finished and not has_checkpoints(folder / CHECKPOINTS_DIR):
        check_finished_recipe(folder, recipe)
        return read_json(folder / RESULTS_FILE)
    check_metrics(parse_metrics(recipe.evaluation.metrics), request)
    build_config(recipe)  # a mistake in the model section shows before minutes of data preparation
    task = LanguageModelTask(recipe) if recipe.probe is None else ProbeTask(recipe, request.processes)
    precision = requested_precision(task.training, request, decided_precision(folder))
    with quiet_libraries():
        args = build_arguments(task.training, precision, folder / CHECKPOINTS_DIR, task.rows[0], request.processes)
        order = task.order(args.data_seed if args.data_seed is not None else args.seed)
        identity = describe_run(task, args, precision.name, task.order_fingerprint(order))
        if finished:
            check_finished(folder / CHECKPOINTS_DIR, identity)
            return read_json(folder / RESULTS_FILE)
        sharding = "fsdp" if request.fsdp else "deepspeed" if request.deepspeed else ""
        surroundings = describe_environment(environment(args.device), args, sharding)
        continuation = Continuation(identity)
        if resume:
            begin_from_trunk(folder, identity, args)
            continuation = plan_continuation(
                folder / CHECKPOINTS_DIR, identity, surroundings, args, extend_to, task.schedule()
            )
            recipe = extended_recipe(recipe, args, continuation)
        check_arguments(args, request, task.training)
        check_model(task.config, args)
        check_optimizer(task.config, args, task.training)
        keeper = CheckpointKeeper(continuation, surroundings)
        return Stages(recipe, folder, task, args, precision, keeper, quiet, request).execute()


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
