"""A prepared set: its runs resolved, matched and named, its data ready. It is what is handed on to whoever trains.

A finished run (same name and hash) is skipped later, an interrupted one resumed. The folders are
`<results_dir>/<name>_<hash>`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hf_arch.checkpoints.plugin_copies import copy_facts
from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.core.waiting import announced
from hf_arch.data import PreparedData, prepare_data
from hf_arch.data.find import FoundData, find_data
from hf_arch.experiments.planning.folders import run_folder
from hf_arch.experiments.planning.ladder import lay_out_ladder, with_branches
from hf_arch.experiments.planning.plan import Plan, PlannedRun, Planner
from hf_arch.experiments.planning.ready_run import ReadyRun
from hf_arch.recipe.dotted import dotted
from hf_arch.recipe.recipe import RUN_FACTS, SECTIONS, Recipe
from hf_arch.runs.plugins import check_files_read
from hf_arch.runs.record import group_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreparedSet:
    """The runs of a set with their folders, the plan that they come from (with its skipped points), and by
    `Recipe.data_key` the tokenizers of its data and the data itself (of a dry run, what was found of it).
    """

    runs: list[ReadyRun]
    plan: Plan
    tokenizers: Mapping[str, PreTrainedTokenizerBase]
    data: Mapping[str, PreparedData | FoundData] = field(default_factory=dict)

    def of_seeds(self, seeds: Collection[int]) -> PreparedSet:
        """The runs of these seeds alone."""
        kept = [
            (ready, planned)
            for ready, planned in zip(self.runs, self.plan.runs, strict=True)
            if planned.recipe.training["seed"] in seeds
        ]
        plan = replace(self.plan, runs=[planned for _ready, planned in kept])
        return replace(self, runs=[ready for ready, _planned in kept], plan=plan)


def prepare_set(
    recipe: Recipe,
    results_dir: Path,
    processes: int = 1,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    dry: bool = False,
    planner: Planner | None = None,
) -> PreparedSet:
    """Plans and matches a set and names its folders. Data is prepared here, once for all runs that share it.

    Several `processes` in one run make its batches larger, so they are part of its name. `facts` are what the runs of
    each name in `experiment.runs` record of themselves, under `run` of their experiment_config.json. With `dry` the
    data is only looked for: what is not there is neither downloaded nor tokenised, and its vocabulary counts as the
    recipe says. `planner` is that of this very recipe, where one was made to check it.

    Raises `ConfigError` for anything wrong in any run, before any of them starts.
    """
    if recipe.experiment.ladder is None:
        if planner is None or planner.recipe is not recipe:
            planner = Planner(recipe)
        return _prepared(planner, recipe, results_dir, processes, facts or {}, dry=dry)
    recipe, facts = lay_out_ladder(recipe, processes, facts, dry=dry)
    prepared = _prepared(Planner(recipe), recipe, results_dir, processes, facts, dry=dry)
    return replace(prepared, runs=with_branches(prepared.runs))


def _prepared(
    planner: Planner,
    recipe: Recipe,
    results_dir: Path,
    processes: int = 1,
    run_facts: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    *,
    dry: bool = False,
) -> PreparedSet:
    declared = planner.unmatched().runs  # mistakes in a run have shown by now, before its data is prepared
    options = {run.recipe.data_key: run.recipe.data for run in declared if run.recipe.probe is None}
    prepared = {key: find_data(entry) if dry else prepare_data(entry) for key, entry in options.items()}
    tokenizers = {key: entry.tokenizer for key, entry in prepared.items() if entry.tokenizer is not None}
    with announced(f"{recipe.experiment.name}: planning the runs and matching their sizes"):
        plan = planner.plan(tokenizers)
    facts = _set_facts(recipe, plan)
    runs = []
    for run in plan.runs:
        data = prepared.get(run.recipe.data_key)
        points_to = [] if data is None else [data.fingerprint or "data not prepared"]
        points_to += [f"{processes} processes"] if processes > 1 else []
        own = {"name": run.name, "hash": run.recipe.stable_hash(*points_to), **facts}
        own |= run_facts.get(run.declared, {})
        folder = run_folder(run.recipe, results_dir, run.name, *points_to)
        plugins = tuple(plugin.source for plugin in run.recipe.kept_plugins)
        check_files_read(folder, plugins)
        own["plugins"] = copy_facts(plugins, folder)
        config = {**run.recipe.with_plugins(list(own["plugins"])).to_dict(), RUN_FACTS: own}
        runs.append(ReadyRun(run.name, folder, config, run.recipe.training.get("max_steps"), plugins))
    return PreparedSet(runs, plan, tokenizers, prepared)


def _set_facts(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """What each run of a set records of the set: the run that others are compared to, and how they were matched."""
    match = recipe.experiment.match
    reference = match.reference if match is not None and match.reference else plan.runs[0].name
    experiment = recipe.experiment
    asked = {key for changes in experiment.runs.values() for key, _ in dotted(changes or {}, "experiment.runs")}
    facts: dict[str, Any] = {"question": sorted({*asked, *experiment.matrix})}
    if isinstance(experiment.seeds, tuple) and experiment.seeds:
        facts["planned_seeds"] = list(experiment.seeds)
    for key in experiment.vary:
        full = key if key.partition(".")[0] in SECTIONS else f"model.{key}"
        if not any(one == full or one.startswith(f"{full}.") for one in facts["question"]):
            raise choice_error("experiment.vary", key, facts["question"])
    if experiment.vary:
        facts["vary"] = list(experiment.vary)
    if len(plan.names) > 1:
        baseline = next(run.name for run in plan.runs if reference in (run.declared, run.name))
        facts["baseline"] = group_name(baseline)
    if match is not None:
        facts["match"] = {"by": match.by, "tolerance": match.tolerance, "reference": reference}
    return facts


def select_run(recipe: Recipe, name: str | None, output_dir: str | None) -> tuple[Recipe, Path]:
    """The one run to train, matched as in its set, and its folder: `output_dir`, or `results/[<set>/]<name>_<hash>`.

    Raises `ConfigError` where the recipe declares several runs and `name` chooses none of them.
    """
    planner, chosen = _choose(recipe, name)
    if output_dir is not None and recipe.experiment.match is None:
        return chosen.recipe, Path(output_dir)
    prepared = _prepared(planner, recipe, _parent(recipe))
    number = [run.name for run in prepared.runs].index(chosen.name)
    folder = Path(output_dir) if output_dir is not None else prepared.runs[number].folder
    return prepared.plan.runs[number].recipe, folder


def preview_run(recipe: Recipe, name: str | None) -> PreparedSet:
    """The set with the one run that `select_run` would choose, for a dry run: nothing is prepared or written."""
    planner, chosen = _choose(recipe, name)
    prepared = _prepared(planner, recipe, _parent(recipe), dry=True)
    number = [run.name for run in prepared.runs].index(chosen.name)
    plan = replace(prepared.plan, runs=[prepared.plan.runs[number]], skipped=[])
    return replace(prepared, runs=[prepared.runs[number]], plan=plan)


def _parent(recipe: Recipe) -> Path:
    return Path("results", recipe.experiment.name) if recipe.experiment.is_set else Path("results")


def _choose(recipe: Recipe, name: str | None) -> tuple[Planner, PlannedRun]:
    """The one run of the recipe, or the one of that name; it is not matched yet."""
    if recipe.experiment.ladder is not None:
        raise ConfigError("experiment.ladder: is trained by `hf-arch run`, which shares the trunk of each size")
    planner = Planner(recipe)
    planned = planner.unmatched().runs
    names = list(dict.fromkeys(run.name for run in planned))
    if name is not None and name not in names:
        raise choice_error("--run", name, names)
    chosen = [run for run in planned if name in (None, run.name)]
    if name is None and len(names) > 1:
        raise ConfigError(
            f"--run: the recipe declares {len(names)} runs; use `hf-arch run`, or choose one: {', '.join(names)}"
        )
    if len(chosen) > 1:
        seeds = recipe.experiment.first_seeds
        raise ConfigError(
            f"experiment.seeds: run {chosen[0].name!r} has {len(seeds)}; use `hf-arch run`, or choose one by "
            f"experiment.seeds=[{seeds[0]}]: {', '.join(map(str, seeds))}"
        )
    return planner, chosen[0]


def set_folder(recipe: Recipe) -> Path:
    """Where the results of a set lie by default."""
    return Path("results") / recipe.experiment.name
