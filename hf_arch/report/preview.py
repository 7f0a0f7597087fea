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
from hf_arch.experiments.planning.plan import PlannedRun
from hf_arch.experiments.planning.prepare import PreparedSet, prepare_set
from hf_arch.experiments.planning.rates import RateSweep
from hf_arch.experiments.planning.seeds import check_auto_seeds, with_seed_plan
from hf_arch.recipe.recipe import Recipe
from hf_arch.recipe.seeds import AutoSeeds
from hf_arch.report.names import explained, short_names
from hf_arch.report.table import print_skipped

NUMBERS_WIDTH = 66  # of all columns but the names


def preview(
    recipe: Recipe, results_dir: Path, processes: int = 1, facts: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Prints what `hf-arch run` would train of a set: the sweep of its learning rates first, where it has one, then the
    set that is compared, at the rates that the sweep has chosen so far."""
    seeds = recipe.experiment.seeds
    if isinstance(seeds, AutoSeeds):
        check_auto_seeds(recipe)
        facts = with_seed_plan(recipe, facts)
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
    prepared = prepare_set(recipe, results_dir, processes, facts)
    print_preview(recipe, prepared)
    if isinstance(seeds, AutoSeeds):
        print(auto_seeds_words(seeds, prepared))


def auto_seeds_words(seeds: AutoSeeds, prepared: PreparedSet) -> str:
    """How many runs, FLOPs and hours a set comes to whose seeds are added while a claim is undecided.

    Hours are those of the runs of the same name that have finished, of others by their FLOPs at the same speed.
    """
    first = {run.name: run for run in reversed(prepared.plan.runs)}
    flops = {name: (run_tokens(run.recipe) or 0) * _flops(run) for name, run in first.items()}
    done = [(run.name, run.record) for run in prepared.runs if run.status == "completed"]
    seconds = [(name, found) for name, record in done if record and (found := record.numbers.get("wall_seconds"))]
    speed = sum(flops[name] for name, _ in seconds) / max(sum(time for _, time in seconds), 1e-9)
    ends = (seeds.least, seeds.most)
    runs = " to ".join(str(count * len(first)) for count in ends)
    total = " to ".join(f"{quantity(count * sum(flops.values()))}FLOPs" for count in ends)
    hours = "hours are known once a run here has finished"
    if speed > 0:
        hours = " to ".join(f"{count * sum(flops.values()) / speed / 3600:.3g}" for count in ends) + " hours"
        hours += f", at the speed of {len(seconds)} finished run{'' if len(seconds) == 1 else 's'}"
    return f"seeds: {seeds.least} to {seeds.most}, as the claims need: {runs} runs, {total}, {hours}"


def _flops(run: PlannedRun) -> float:
    return float(hf_arch.cost(run.config, run.recipe.sequence_length).flops_per_token_train)  # type: ignore[arg-type]


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
