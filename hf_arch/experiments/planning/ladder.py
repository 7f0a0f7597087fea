"""A ladder laid out as runs: sizes x budgets of every run of the set, with one trunk for each size.

The run of a size's largest budget is the trunk: warm-up, a constant rate, a decay at its end. Every smaller budget is a
run with the same warm-up and the same constant rate whose decay begins earlier. Until then its steps are the trunk's,
so it begins from the trunk's checkpoint and trains its decay alone: no step is computed twice, and its numbers are
those of the same run from step 0 (`hf_arch.training.trunk`). Each is a run of its own, with folder, curve and results.

Rules by size: `fitted` takes batch and rate from the ladder of Bhagia et al., Establishing Task Scaling Laws via
Compute-Efficient Model Ladders (2024); muP and CompleteP are those of `hf_arch.layers.parametrization`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.core.registry import SCHEDULES
from hf_arch.data import prepare_data
from hf_arch.data.find import find_data
from hf_arch.experiments.planning.sizing import Sized, sized_model
from hf_arch.recipe.build import build_config
from hf_arch.recipe.dotted import set_dotted
from hf_arch.recipe.ladder import LadderOptions
from hf_arch.recipe.recipe import RUN_FACTS, Recipe
from hf_arch.schedules.base import Schedule, ScheduledRun, check_rates, sampled_steps
from hf_arch.schedules.choose import choose_schedule, schedule_names
from hf_arch.training.arguments import DEFAULTS

if TYPE_CHECKING:
    from hf_arch.experiments.planning.ready_run import ReadyRun

ALIASES = {"wsd": "warmup_stable_decay"}
"""Short names of trunks."""
DEFAULT_WARMUP = 0.1
"""Of the smallest budget."""
DEFAULT_ROWS = 8
FITTED_SIZE, FITTED_TOKENS, FITTED_RATE = 108e6, 2048 * 160, 0.0047 / 2
LADDER, BRANCH, BRANCH_POINTS = "ladder", "branch", "branch_points"
"""What the runs record of the ladder, of where they branch off, and of the steps whose checkpoints a trunk keeps."""


@dataclass(frozen=True)
class Batch:
    """Rows of a step: `rows` at once in each process, `accumulation` times."""

    rows: int
    accumulation: int
    processes: int

    @property
    def total(self) -> int:
        """Sequences in one optimiser step."""
        return self.rows * self.accumulation * self.processes


@dataclass(frozen=True)
class Budget:
    """One budget of a size: `steps` in all, of which the last `decay` are the decay."""

    tokens_per_parameter: float
    steps: int
    decay: int

    @property
    def branch_step(self) -> int:
        """The last step at the constant rate."""
        return self.steps - self.decay


def lay_out_ladder(
    recipe: Recipe, processes: int = 1, own: Mapping[str, Mapping[str, Any]] | None = None, *, dry: bool = False
) -> tuple[Recipe, dict[str, dict[str, Any]]]:
    """The set with a run for each rung of its ladder, and what each run records: `own` facts, and those of its rung.
    With `dry` the data is only looked for, and where it is not prepared its passes are not known.

    Raises `ConfigError` for sizes that the model cannot have, and for budgets too small for their schedule.
    """
    experiment, options = recipe.experiment, recipe.experiment.ladder
    assert options is not None
    trunk_schedule(options)
    runs: dict[str, dict[str, Any] | None] = {}
    facts: dict[str, dict[str, Any]] = {}
    first: dict[float, Sized] = {}
    for base, given in (experiment.runs or {experiment.name: {}}).items():
        changes: dict[str, Any] = dict(given or {})
        for key, value in recipe.overrides:
            if key.partition(".")[0] != "experiment":
                changes = set_dotted(changes, key, value)
        single = recipe.single(base, given or {})
        _check_training(single, options)
        for name, rung, of_rung in _rungs(base, single, options, processes, dry, first):
            runs[name] = _laid_over(changes, rung)
            facts[name] = {**(own or {}).get(base, {}), LADDER: of_rung}
    laid_out = replace(experiment, ladder=None, runs=runs)
    return replace(recipe, experiment=laid_out, overrides=()), facts


def with_branches(runs: list[ReadyRun]) -> list[ReadyRun]:
    """The runs with the folder of the trunk that each branches off, and with the branch points of each trunk."""
    trunks = {(run.name, run.config["training"].get("seed")): run for run in runs}
    points: dict[Any, list[int]] = {}
    branches: dict[int, dict[str, Any]] = {}
    for index, run in enumerate(runs):
        ladder = run.config[RUN_FACTS][LADDER]
        if ladder["trunk"] != run.name:
            trunk = trunks[ladder["trunk"], run.config["training"].get("seed")]
            points.setdefault(trunk.folder, []).append(ladder["branch_step"])
            branches[index] = {"folder": f"../{trunk.folder.name}", "step": ladder["branch_step"]}
    found = []
    for index, run in enumerate(runs):
        own = {BRANCH: branches[index]} if index in branches else {BRANCH_POINTS: sorted(points.get(run.folder, []))}
        found.append(replace(run, config={**run.config, RUN_FACTS: {**run.config[RUN_FACTS], **own}}))
    return found


def share_trained(run: ReadyRun) -> float:
    """The share of a run's steps that are its own: 1, but for a branch."""
    branch = run.config[RUN_FACTS].get(BRANCH)
    return 1.0 if branch is None or not run.steps else 1 - branch["step"] / run.steps


Rung = tuple[str, dict[str, Any], dict[str, Any]]
"""A run's name, its changes by dotted key, and the facts that it records."""


def _rungs(
    base: str, single: Recipe, options: LadderOptions, processes: int, dry: bool, first: dict[float, Sized]
) -> Iterator[Rung]:
    """Every rung of one run of the set, sizes and budgets ascending. `first` is the model of each size that the first
    run of the set has, which the others are made equal to."""
    found = find_data(single.data) if dry else None
    data = prepare_data(single.data) if found is None else found.prepared
    tokenizer = data.tokenizer if data is not None else found.tokenizer if found is not None else None
    rows = None if data is None else len(data.train)
    for size, model in _models(base, single, options, tokenizer, first):
        changes = {
            **{f"model.{key}": value for key, value in model.changes.items()},
            **_parametrization(single, options, tokenizer),
        }
        for name, of_budget, facts in _rungs_of_size(base, single, options, size, processes, rows):
            yield name, {**changes, **of_budget}, {"base": base, "size": size, "parameters": model.parameters, **facts}


def _models(
    base: str, single: Recipe, options: LadderOptions, tokenizer: Any, first: dict[float, Sized]
) -> Iterator[tuple[float, Sized]]:
    """Every size with its model. Raises `ConfigError` where two sizes come to one model."""
    known: dict[int, float] = {}
    for size in sorted(options.sizes):
        model = sized_model(
            lambda changes: build_config(single.with_model(changes), tokenizer),
            size,
            single.data.sequence_length,
            depth=options.rule != "mup",
            ffn=options.rule in ("fixed", "fitted"),
            like=first.get(size),
        )
        first.setdefault(size, model)
        if model.parameters in known:
            raise ConfigError(
                f"experiment.ladder.sizes: {known[model.parameters]:g} and {size:g} come to the same model of {base!r} "
                f"({model.parameters:,} parameters without embeddings)"
            )
        known[model.parameters] = size
        yield size, model


def _rungs_of_size(
    base: str, single: Recipe, options: LadderOptions, size: float, processes: int, rows: int | None
) -> Iterator[Rung]:
    """The budgets of one size, all with its batch, rate and warm-up. `rows` of the training text, if known."""
    batch, rate = _batch_and_rate(single, options, size, processes)
    tokens_per_step = batch.total * single.data.sequence_length
    budgets = _budgets(options, size, tokens_per_step)
    warmup = _warmup(single, budgets)
    schedules = _schedules(options, budgets, warmup, rate)
    trunk = _name(base, size, budgets[-1])
    passes = None if rows is None else budgets[-1].steps * batch.total / rows
    if passes is not None and passes > 1:
        print(f"{trunk}: {passes:.1f} passes over the training text: its tokens are seen again", file=sys.stderr)
    for budget in budgets:
        changes = {
            "training.max_steps": budget.steps,
            "training.warmup_steps": warmup,
            **{f"training.{key}": value for key, value in schedules[budget].items()},
            "training.per_device_train_batch_size": batch.rows,
            "training.gradient_accumulation_steps": batch.accumulation,
            "training.learning_rate": rate,
        }
        facts = {
            "tokens_per_parameter": budget.tokens_per_parameter,
            "tokens": budget.steps * tokens_per_step,
            "rule": options.rule,
            "trunk": trunk,
            "branch_step": budget.branch_step,
            "passes": None if passes is None else passes * budget.steps / budgets[-1].steps,
        }
        yield _name(base, size, budget), changes, facts


def trunk_schedule(options: LadderOptions) -> tuple[type[Schedule], str, dict[str, Any]]:
    """The schedule of the trunks, its name, and the options that the recipe gives it.

    Raises `ConfigError` for one from which runs cannot branch.
    """
    field = "experiment.ladder.trunk"
    given = dict(options.trunk) if isinstance(options.trunk, Mapping) else {"type": options.trunk}
    name = str(given.pop("type", ""))
    able = [entry for entry in schedule_names() if SCHEDULES[entry].branch_options(1) is not None]
    known = ALIASES.get(name, name)
    if known not in able:
        raise choice_error(field, name, sorted([*ALIASES, *able]))
    return SCHEDULES[known], known, given


def _schedules(options: LadderOptions, budgets: list[Budget], warmup: int, rate: float) -> dict[Budget, dict[str, Any]]:
    """The keys of `training` that make each budget's schedule. Raises `ConfigError` where a branch would not have the
    rates of the trunk until it begins."""
    kind, name, given = trunk_schedule(options)
    found: dict[Budget, dict[str, Any]] = {}
    rates: dict[Budget, tuple[Schedule, ScheduledRun]] = {}
    for budget in budgets:
        values = {**given, **(kind.branch_options(budget.decay) or {})}
        found[budget] = {"lr_scheduler_type": name, "lr_scheduler_kwargs": values}
        schedule, run = choose_schedule(found[budget]), ScheduledRun(budget.steps, warmup, rate)
        check_rates(schedule, run)
        rates[budget] = schedule, run
    trunk, longest = rates[budgets[-1]]
    for budget, (schedule, run) in rates.items():
        for step in [*(at for at in sampled_steps(run) if at < budget.branch_step), budget.branch_step]:
            if schedule.rate(step, run) != trunk.rate(step, longest):
                raise ConfigError(
                    f"experiment.ladder.trunk: {name!r} has another rate in step {step + 1} of {longest.steps} than "
                    f"of {run.steps}, whose decay begins after step {budget.branch_step}: no run can branch from it"
                )
    return found


def _laid_over(changes: Mapping[str, Any], rung: Mapping[str, Any]) -> dict[str, Any]:
    laid = dict(changes)
    for key, value in rung.items():
        laid = set_dotted(laid, key, value)
    return laid


def _check_training(single: Recipe, options: LadderOptions) -> None:
    """Raises `ConfigError` for settings that the ladder makes itself."""
    made = dict.fromkeys(("max_steps", "num_train_epochs"), "the budgets make it")
    made |= {
        "lr_scheduler_type": f"the trunk is {options.trunk!r}, which `experiment.ladder.trunk` chooses",
        "lr_scheduler_kwargs": "`decay` of the ladder makes it",
    }
    if options.rule == "fitted":
        made["learning_rate"] = "the rule 'fitted' makes it"
    for key, why in made.items():
        if key in single.training:
            raise ConfigError(f"training.{key}: not together with experiment.ladder, {why}; leave it out")
    if single.probe is not None:
        raise ConfigError("experiment.ladder: not for a probe, whose rows are not text")


def _batch_and_rate(single: Recipe, options: LadderOptions, size: float, processes: int) -> tuple[Batch, float]:
    training = single.training
    rows = int(training.get("per_device_train_batch_size", DEFAULT_ROWS))
    if options.rule != "fitted":
        rate = float(training.get("learning_rate", DEFAULTS["learning_rate"]))
        return Batch(rows, int(training.get("gradient_accumulation_steps", 1)), processes), rate
    ratio = size / FITTED_SIZE
    wanted = FITTED_TOKENS * ratio ** (2 / 3) / single.data.sequence_length / processes
    # The recipe's rows are the most at once; down to half of them may divide the wanted batch better.
    at_once = range(rows, rows // 2, -1) if wanted > rows else (max(1, round(wanted)),)
    batches = [Batch(count, max(1, round(wanted / count)), processes) for count in at_once]
    nearest = min(batches, key=lambda batch: abs(batch.rows * batch.accumulation - wanted))
    return nearest, float(f"{FITTED_RATE * ratio ** (-1 / 3):.4g}")


def _budgets(options: LadderOptions, size: float, tokens_per_step: int) -> list[Budget]:
    found: list[Budget] = []
    for times in sorted(options.tokens_per_parameter):
        steps = round(times * size / tokens_per_step)
        budget = Budget(times, steps, max(1, round(options.decay * steps)))
        if budget.branch_step < 1 or (found and budget.branch_step <= found[-1].branch_step):
            raise ConfigError(
                f"experiment.ladder: {times:g} tokens a parameter at {size:g} parameters are {steps} steps of "
                f"{tokens_per_step:,} tokens, too few to distinguish budgets; take smaller batches or larger budgets"
            )
        found.append(budget)
    return found


def _warmup(single: Recipe, budgets: list[Budget]) -> int:
    """Steps of the warm-up, the same for all budgets of a size; a share counts of the smallest."""
    given = single.training.get("warmup_steps", DEFAULT_WARMUP)
    steps = round(given * budgets[0].steps) if 0 < given < 1 else int(given)
    if steps > budgets[0].branch_step:
        raise ConfigError(
            f"training.warmup_steps: {steps} are more than the {budgets[0].branch_step} steps before the decay of the "
            f"smallest budget ({budgets[0].tokens_per_parameter:g} tokens a parameter); a share, as 0.1, counts of that"
        )
    return steps


def _parametrization(single: Recipe, options: LadderOptions, tokenizer: Any) -> dict[str, Any]:
    """muP or CompleteP with the recipe's own model as its base; what the recipe says of it itself stays."""
    if options.rule not in ("mup", "completep"):
        return {}
    shape = build_config(single, tokenizer)
    given = single.model.get("parametrization")
    own = dict(given) if isinstance(given, Mapping) else {}
    base: dict[str, Any] = {"type": options.rule, "base_width": shape.hidden_size}
    if options.rule == "completep":
        base["base_depth"] = len(shape.plan)
    return {"model.parametrization": {**base, **own}, "model.rescale_residual_init": False}


def _name(base: str, size: float, budget: Budget) -> str:
    count = f"{size / 1e6:g}M" if size >= 1e6 else f"{size / 1e3:g}k"
    return f"{base}-{count}-{budget.tokens_per_parameter:g}x"
