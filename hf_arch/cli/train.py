"""What `hf-arch train` does: one run, or with `--dry-run` what it would take.

A mistake in the recipe is found before torch is imported.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_arch.cli.output import only_results_on_stdout, print_json
from hf_arch.core.collector import without_collection
from hf_arch.core.errors import ConfigError

if TYPE_CHECKING:
    from hf_arch.experiments.planning.forecast import RunForecast
    from hf_arch.recipe.recipe import Recipe


@dataclass(frozen=True)
class TrainOptions:
    """The command line of `hf-arch train`."""

    recipe: str
    overrides: tuple[str, ...]
    scale: str | None
    run: str | None
    output_dir: str | None
    resume: bool
    extend_to: int | None
    distributed: str

    @property
    def continues(self) -> bool:
        """Whether the run is there already, in part or whole."""
        return self.resume or self.extend_to is not None

    def load(self) -> Recipe:
        """The recipe; of plugins that a run keeps which is to go on, its own copies are taken."""
        from hf_arch.recipe.recipe import load_recipe

        return load_recipe(self.recipe, self.overrides, self.scale, run=self.output_dir if self.continues else None)


def train_recipe(options: TrainOptions, as_json: bool = False) -> int:
    """Trains the run and prints its numbers, or its `results.json`; the exit code."""
    loaded = options.load()
    with without_collection():
        from hf_arch.core.files import to_jsonable
        from hf_arch.experiments.execution.process import launcher
        from hf_arch.experiments.execution.runner import visible_gpus
        from hf_arch.experiments.planning.prepare import select_run
        from hf_arch.training.launch import check_launch, is_main_process, leave, read_request
        from hf_arch.training.run import print_results, run_training

    request = read_request()
    check_launch(request, options.distributed)
    if options.distributed == "always" and request.processes == 1:
        command = [*launcher(max(2, len(visible_gpus()))), "-m", "hf_arch", *sys.argv[1:]]
        os.execv(command[0], command)
    with only_results_on_stdout(as_json):
        single, folder = select_run(loaded, options.run, options.output_dir)
        results = run_training(single, folder, resume=options.resume, extend_to=options.extend_to)
        leave()
    if not as_json:
        print_results(results, folder)
    elif is_main_process():
        print_json(to_jsonable(results))
    return 0


def preview_train(options: TrainOptions, as_json: bool = False) -> int:
    """Prints what the run would take; the exit code."""
    with only_results_on_stdout(as_json):
        loaded = options.load()
        from hf_arch.experiments.planning.forecast import document
        from hf_arch.experiments.planning.prepare import preview_run
        from hf_arch.report.preview import preview_set, print_forecast
        from hf_arch.training.launch import read_request
        from hf_arch.training.run import check_folder

        if options.extend_to is not None:
            loaded = replace(loaded, overrides=(*loaded.overrides, ("training.max_steps", options.extend_to)))
        prepared = preview_run(loaded, options.run)
        folder = Path(options.output_dir) if options.output_dir is not None else prepared.runs[0].folder
        check_folder(folder, options.continues)
        prepared = replace(prepared, runs=[replace(prepared.runs[0], folder=folder)])
        found = preview_set(loaded, prepared, processes=max(1, read_request().processes))
        if options.continues:
            found = replace(found, runs=(_left(found.runs[0], folder, options.extend_to),))
        if not as_json:
            print_forecast(found)
    if as_json:
        print_json(document([found]))
    return 0


def _left(run: RunForecast, folder: Path, extend_to: int | None) -> RunForecast:
    """The forecast of a run that goes on from its newest checkpoint."""
    from hf_arch.core.files import read_json
    from hf_arch.runs.files import CHECKPOINTS_DIR
    from hf_arch.training.checkpoints import STATE_FILE, newest_checkpoint

    checkpoint = newest_checkpoint(folder / CHECKPOINTS_DIR)
    done = 0 if checkpoint is None else int(read_json(checkpoint / STATE_FILE)["global_step"])
    if extend_to is not None and extend_to < done:
        raise ConfigError(f"--extend-to: {extend_to} is fewer than the {done} steps that are done")
    if run.steps is None or run.seconds is None or (run.done and extend_to is None):
        return run
    share = (run.steps - done) / run.steps
    tokens = None if run.tokens is None else round(run.tokens * share)
    flops = None if run.flops is None else run.flops * share
    seconds = run.seconds * share if run.seconds else run.seconds
    return replace(run, tokens=tokens, flops=flops, seconds=seconds)
