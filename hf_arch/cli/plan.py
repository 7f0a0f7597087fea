"""What `hf-arch plan` does: a recipe's runs on GPUs that need not be there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from hf_arch.core.errors import choice_error
from hf_arch.core.formats import byte_size, duration, quantity
from hf_arch.evaluation.step_memory import GRADIENTS
from hf_arch.experiments.planning.capacity import HEADROOM, Capacity, Cluster, Placement, Planned
from hf_arch.experiments.planning.devices import find_gpu
from hf_arch.experiments.planning.plan import PlannedRun, plan_runs
from hf_arch.recipe.recipe import load_recipe


def plan_capacity(
    recipe: str,
    overrides: Sequence[str],
    scale: str | None,
    run: str | None,
    cluster: tuple[str, int, int],
    mfu: float,
    price: float | None,
) -> tuple[Cluster, list[Capacity]]:
    """The plan of each distinct run of a recipe (or of `run` alone) on `cluster`: GPU, count, nodes.

    Raises:
        ConfigError: an unknown GPU, a number out of its range, and whatever is wrong in the recipe.
    """
    name, count, nodes = cluster
    machines = Cluster(find_gpu(name), count, nodes)
    runs: dict[str, PlannedRun] = {}
    for planned in plan_runs(load_recipe(recipe, overrides, scale)).runs:
        runs.setdefault(planned.name, planned)  # seeds share a model
    if run is not None and run not in runs:
        raise choice_error("--run", run, runs)
    chosen = [runs[run]] if run is not None else list(runs.values())
    return machines, [Planned(planned, machines).capacity(mfu, price) for planned in chosen]


def to_json(cluster: Cluster, plans: Sequence[Capacity]) -> dict[str, Any]:
    """One document: the machines, what was assumed, and each run."""
    return {
        "gpu": cluster.gpu.name,
        "gpu_memory_bytes": cluster.gpu.memory,
        "count": cluster.count,
        "nodes": cluster.nodes,
        "headroom": HEADROOM,
        "runs": [plan.to_dict() for plan in plans],
    }


def print_plans(cluster: Cluster, plans: Sequence[Capacity]) -> None:
    """A table a run: a row a part, a column a strategy; then time, and what fits."""
    console = Console(highlight=False)
    for plan in plans:
        console.print(_table(cluster, plan))
        for line in _lines(cluster, plan):
            console.print(line, soft_wrap=True, markup=False)
        console.print()


def _table(cluster: Cluster, plan: Capacity) -> Table:
    devices = f"{cluster.count} x {cluster.gpu.name}" + (f" on {cluster.nodes} nodes" if cluster.nodes > 1 else "")
    title = f"{plan.name}: {plan.params:,} parameters, {plan.precision}, {devices}; memory of one device"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for placed in plan.placements:
        table.add_column(_strategy(placed), justify="right")
    parts = dict.fromkeys(part for placed in plan.placements for part in placed.parts)
    for part in parts:
        sizes = [placed.parts.get(part) for placed in plan.placements]
        table.add_row(part, *("" if size is None else byte_size(size) for size in sizes))
    table.add_row("total", *(byte_size(placed.total) for placed in plan.placements))
    table.add_row("fits", *("yes" if placed.fits else "no" for placed in plan.placements))
    return table


def _lines(cluster: Cluster, plan: Capacity) -> list[str]:
    asked = plan.placements[0].setting
    rows = f"{asked.batch} rows a device x {asked.accumulation} x {cluster.count}"
    lines = [
        f"step: {rows} = {quantity(plan.tokens_per_step)} tokens; {quantity(plan.tokens_per_second)} tokens/s at an "
        f"assumed MFU of {plan.mfu:.0%}"
    ]
    if plan.seconds is not None and plan.gpu_hours is not None:
        cost = "" if plan.cost is None else f", {plan.cost:,.2f} at the given price"
        lines.append(
            f"run: {quantity(plan.tokens)} tokens, {duration(plan.seconds)}, {plan.gpu_hours:,.3g} GPU hours{cost}"
        )
    else:
        lines.append("run: the recipe counts epochs, so its tokens are known once its data is prepared")
    if any(placed.fits for placed in plan.placements):
        misses = [placed.setting.strategy for placed in plan.placements if not placed.fits]
        if misses:
            lines.append(f"does not fit: {', '.join(misses)}")
    elif plan.nearest is None:
        lines.append("does not fit, not even one row at a time; take larger GPUs, or more of them")
    if plan.nearest is not None:
        lines.append(f"nearest that fits: {_describe(plan.nearest)}")
    if not any(placed.parts[GRADIENTS] for placed in plan.placements):
        lines.append("at its fullest a device holds all activations; gradients are made as those go")
    room = f"{byte_size(cluster.gpu.memory)} less {HEADROOM:.0%} for context, workspaces and gaps"
    return [*lines, f"memory of a {cluster.gpu.name}: {room}; activations are those of plain torch"]


def _strategy(placed: Placement) -> str:
    return f"{placed.setting.strategy} {placed.group}" if placed.setting.strategy == "tp" else placed.setting.strategy


def _describe(placed: Placement) -> str:
    setting = placed.setting
    checkpointing = " with activation checkpointing" if setting.checkpointing else ""
    return (
        f"{_strategy(placed)}, {setting.batch} rows a device, accumulated {setting.accumulation} times{checkpointing}: "
        f"{byte_size(placed.total)}"
    )
