"""`hf-arch run --dry-run`: what a set would train, how equal its runs are, and what it costs, before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import hf_arch
from hf_arch.analysis.verdicts import unjudged
from hf_arch.core.formats import byte_size, quantity
from hf_arch.experiments.planning.ladder import share_trained
from hf_arch.experiments.planning.prepare import PreparedSet, prepare_set
from hf_arch.experiments.planning.rates import RateSweep
from hf_arch.recipe.recipe import Recipe
from hf_arch.report.names import explained, short_names
from hf_arch.report.table import print_skipped

NUMBERS_WIDTH = 66  # of all columns but the names


def preview(
    recipe: Recipe, results_dir: Path, processes: int = 1, facts: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Prints what `hf-arch run` would train of a set: the sweep of its learning rates first, where it has one, then the
    set that is compared, at the rates that the sweep has chosen so far."""
    if recipe.experiment.learning_rates is not None:
        sweep = RateSweep(recipe, results_dir, processes)
        prepared = sweep.prepare()
        print_preview(
            replace(recipe, experiment=replace(recipe.experiment, hypothesis="", name="learning rates")), prepared
        )
        choices = sweep.choices(prepared)
        if any(choice.at_edge for choice in choices.values()) or not choices:
            print("a best rate at the end of the grid adds one rate at that end to every run")
        recipe, facts = sweep.compared(choices, facts)
    print_preview(recipe, prepare_set(recipe, results_dir, processes, facts))


def print_preview(recipe: Recipe, prepared: PreparedSet, console: Console | None = None) -> None:
    """Prints a row for each run of the set (its seeds together), then the FLOPs of all that is still to be trained.

    FLOPs count the training of what is left, 6N a token plus the mixers' own as `hf_arch.cost` gives them; validation
    is not in them, nor are the steps that a branch of a ladder takes over from its trunk.
    """
    console = console or Console(highlight=False)
    table = Table(title=recipe.experiment.name, title_justify="left", box=None, pad_edge=False)
    names = short_names(prepared.plan.names, console.width - NUMBERS_WIDTH)
    for title in ("run", "seeds", "done", "parameters", "matched", "state", "tokens", "FLOPs"):
        named = title == "run"
        table.add_column(title, justify="left" if named else "right", no_wrap=named, overflow="fold")
    left = 0.0
    for name in prepared.plan.names:
        pairs = [
            (planned, ready)
            for planned, ready in zip(prepared.plan.runs, prepared.runs, strict=True)
            if planned.name == name
        ]
        first, done = pairs[0][0], sum(ready.status == "completed" for _planned, ready in pairs)
        cost = hf_arch.cost(first.config, first.recipe.sequence_length)
        tokens = run_tokens(first.recipe)
        flops = None if tokens is None else tokens * cost.flops_per_token_train
        left += (flops or 0.0) * share_trained(pairs[0][1]) * (len(pairs) - done)
        table.add_row(
            Text(names[name]),
            str(len(pairs)),
            str(done),
            f"{cost.params_total:,}",
            "" if first.matched is None else f"{first.matched.residual:+.2%}",
            byte_size(cost.state_bytes(first.recipe.sequence_length)),
            "by epochs" if tokens is None else quantity(tokens),
            "" if flops is None else quantity(flops),
        )
    console.print(table)
    for line in explained(names):
        console.print(Text(line))
    print_skipped(prepared.plan.skipped)
    if recipe.experiment.hypothesis:
        architectures = {str(run.recipe.model.get("architecture")) for run in prepared.plan.runs}
        for line in unjudged(recipe.experiment.hypothesis, {*prepared.plan.names, *architectures}):
            console.print(line, soft_wrap=True, markup=False)
    waiting = sum(ready.status != "completed" for ready in prepared.runs)
    console.print(f"{waiting} of {len(prepared.runs)} runs to train, {quantity(left)}FLOPs in all; nothing was started")


def run_tokens(recipe: Recipe) -> int | None:
    """Training tokens of one run in one process; None where the recipe counts epochs."""
    training = recipe.training
    steps = training.get("max_steps")
    if steps is None or steps < 1:
        return None
    batch = training.get("per_device_train_batch_size", 8) * training.get("gradient_accumulation_steps", 1)
    return int(steps * batch * recipe.sequence_length)
