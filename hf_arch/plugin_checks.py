"""`hf-arch check FILE` for what a plugin registers besides parts and probes: optimisers, initialisation policies,
schedules, metrics and columns, each tried on small models or runs."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.checks import CheckResult
from hf_arch.core import registry
from hf_arch.core.options import parse_options
from hf_arch.core.plugins import plugin_error
from hf_arch.core.registry import Registry
from hf_arch.evaluation.metric import Measurement, parse_metrics
from hf_arch.optimizers.base import OptimizerSettings
from hf_arch.optimizers.choose import build_optimizer, choose_optimizer
from hf_arch.optimizers.parameters import trained_parameters
from hf_arch.runs.columns import filled_column
from hf_arch.runs.record import RunRecord
from hf_arch.schedules.base import Schedule, ScheduledRun, check_rates

Check = Callable[[str], str | None]
STEPS, RATE = 4, 1e-3
LENGTHS = (1, 20, 200)
"""Steps of the runs whose rates are looked at."""
CPU = torch.device("cpu")


def check_entry(kind: str, name: str) -> list[CheckResult]:
    """Every check of this kind on the entry called `name`; later ones are left out where the first one fails."""
    results: list[CheckResult] = []
    for title, (check, hint) in KINDS[kind][1].items():
        try:
            wrong = check(name)
        except Exception as error:  # the code under test may raise anything
            wrong = str(error) if isinstance(error, registry.ConfigError) else plugin_error(error)
        results.append(CheckResult(title, wrong is None, wrong or "ok", "" if wrong is None else hint))
        if not results[0].passed:
            break
    return results


def _model(seed: int = 0, **values: Any) -> Any:
    torch.manual_seed(seed)
    config = hf_arch.tiny_config("mixed", **{"mixer": ["mamba", "attention"], **values})
    return AutoModelForCausalLM.from_config(config)


def _rows() -> torch.Tensor:
    return torch.randint(3, 60, (4, 16), generator=torch.Generator().manual_seed(0))


def _optimizer(name: str, model: Any) -> torch.optim.Optimizer:
    settings = OptimizerSettings(RATE, 0.1)
    return build_optimizer(choose_optimizer({"optim": name}), trained_parameters(model), settings)


def _step(model: Any, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = model(_rows(), labels=_rows(), use_cache=False).loss
    loss.backward()
    optimizer.step()
    return loss.item()


def _groups(name: str) -> str | None:
    _optimizer(name, _model())
    return None


def _learns(name: str) -> str | None:
    model = _model().train()
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimizer = _optimizer(name, model)
    losses = [_step(model, optimizer) for _ in range(3 * STEPS)]
    if not math.isfinite(losses[-1]) or losses[-1] >= losses[0]:
        return f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} steps at the rate {RATE:g}"
    still = [
        key for key, value in model.named_parameters() if value.grad is not None and torch.equal(value, before[key])
    ]
    return f"{still[0]} did not move" if still else None


def _follows_the_rate(name: str) -> str | None:
    model = _model().train()
    optimizer = _optimizer(name, model)
    _step(model, optimizer)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    _step(model, optimizer)
    moved = [key for key, value in model.named_parameters() if not torch.equal(value, before[key])]
    return f"{moved[0]} moves at a learning rate of 0" if moved else None


def _resumes(name: str) -> str | None:
    model = _model().train()
    optimizer = _optimizer(name, model)
    for _ in range(STEPS):
        _step(model, optimizer)
    second = copy.deepcopy(model)
    other = _optimizer(name, second)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        _step(model, optimizer)
        _step(second, other)
    pairs = zip(model.named_parameters(), second.parameters(), strict=True)
    apart = [key for (key, value), loaded in pairs if not torch.equal(value, loaded)]
    return f"{apart[0]} goes another way from a saved state" if apart else None


def _schedules(name: str) -> Iterator[tuple[Schedule, ScheduledRun]]:
    """Of runs of several lengths, with and without a warm-up."""
    kind = registry.SCHEDULES[name]
    for steps in LENGTHS:
        for warmup in (0, steps // 4) if kind.warms_up else (0,):
            yield kind(kind.Options()), ScheduledRun(steps, warmup, RATE)


def _has_rates(name: str) -> str | None:
    for schedule, run in _schedules(name):
        check_rates(schedule, run)
        if not any(schedule.rate(step, run) for step in range(run.steps)):
            return f"the learning rate is 0 in all of {run.steps} steps"
    return None


def _of_the_step(name: str) -> str | None:
    for schedule, run in _schedules(name):
        forth = [schedule.rate(step, run) for step in range(run.steps)]
        other = type(schedule)(schedule.options)
        back = [other.rate(step, run) for step in reversed(range(run.steps))][::-1]
        apart = [step for step in range(run.steps) if forth[step] != back[step]]
        if apart:
            return f"step {apart[0]} of {run.steps} has the rate {forth[apart[0]]:g}, then {back[apart[0]]:g}"
    return None


def _warms_up(name: str) -> str | None:
    for schedule, run in _schedules(name):
        plain = replace(run, warmup=0)
        if run.warmup and all(schedule.rate(step, run) == schedule.rate(step, plain) for step in range(run.steps)):
            return f"{run.warmup} warm-up steps change no rate of {run.steps} steps"
    return None


def _branches(name: str) -> str | None:
    kind = registry.SCHEDULES[name]
    for length in LENGTHS[1:]:
        decay = max(1, length // 5)
        given = kind.branch_options(decay)
        if given is None:
            return None
        schedule = kind(parse_options(kind.Options, dict(given), "branch_options"))
        short, long = ScheduledRun(length, length // 10, RATE), ScheduledRun(3 * length, length // 10, RATE)
        for step in range(length - decay + 1):
            if schedule.rate(step, short) != schedule.rate(step, long):
                return f"step {step} of {length}, before the last {decay}, has another rate in {3 * length} steps"
    return None


def _fills(name: str) -> str | None:
    model = _model(init=name)
    loss = model(_rows(), labels=_rows()).loss
    return None if bool(loss.isfinite()) else f"the loss of the model is {float(loss)}"


def _repeats(name: str) -> str | None:
    return _apart(_model(init=name), _model(init=name), "two models with one seed differ in {}")


def _named(name: str) -> str | None:
    less = _model(init=name, mixer="attention", num_hidden_layers=1)
    more = _model(init=name, mixer="attention", num_hidden_layers=2)
    return _apart(less, more, "{} depends on how many layers the model has")


def _loads(name: str) -> str | None:
    model = _model(init=name)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return _apart(model, AutoModelForCausalLM.from_pretrained(folder), "{} is another one after loading")


def _apart(model: Any, other: Any, words: str) -> str | None:
    theirs = other.state_dict()
    apart = [key for key, value in model.state_dict().items() if not torch.equal(value, theirs[key])]
    return words.format(apart[0]) if apart else None


def _measured(name: str, sizes: tuple[int, ...] = (4,)) -> list[float]:
    model, rows = _model().eval(), _rows()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)  # predictions that differ from place to place
    ends = torch.arange(1, len(rows) + 1)[:, None] * rows.shape[1] // len(rows)
    labels = torch.where(torch.arange(rows.shape[1]) < ends, rows, -100)  # rows with more targets and with fewer
    found = []
    for size in sizes:
        measurement = Measurement(parse_metrics([name]))
        parts = zip(rows.split(size), labels.split(size), strict=True)
        measurement.add(model, [{"input_ids": ids, "labels": wanted} for ids, wanted in parts], CPU)
        found.append(measurement.values()[name])
    return found


def _is_a_number(name: str) -> str | None:
    value = _measured(name)[0]
    return None if math.isfinite(value) else f"is {value}"


def _in_batches(name: str) -> str | None:
    whole, *parts = _measured(name, (4, 3, 1))
    apart = [value for value in parts if not math.isclose(value, whole, rel_tol=1e-4, abs_tol=1e-6)]
    return f"{whole:g} of 4 rows at once, {apart[0]:g} in smaller batches" if apart else None


def _same_again(name: str) -> str | None:
    first, second = _measured(name, (2, 2))
    return None if first == second else f"{first:g}, then {second:g} of the same rows"


def _leaves_the_model(name: str) -> str | None:
    model = _model()
    before = copy.deepcopy(model.state_dict())
    Measurement(metrics := parse_metrics([name])).add(model, [{"input_ids": _rows(), "labels": _rows()}], CPU)
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    if changed:
        return f"{changed[0]} was changed"
    return None if model.training and metrics else "the mode of the model was changed"


def _of_a_run(name: str) -> str | None:
    full = dict.fromkeys(("params_total", "tokens_seen", "flops_per_token", "final_val_loss", "steps"), 100.0)
    _filled(name, full)
    return None


def _of_an_old_run(name: str) -> str | None:
    _filled(name, {"final_val_loss": 2.0})
    return None


def _filled(name: str, numbers: Mapping[str, float]) -> None:
    results = {"name": "run", "status": "completed", "seed": 1, "architecture": "llama", **numbers}
    filled_column(name, registry.COLUMNS[name](), [RunRecord.from_files(Path("run"), results, {})])


KINDS: dict[str, tuple[Registry[Any], dict[str, tuple[Check, str]]]] = {
    "optimizer": (
        registry.OPTIMIZERS,
        {
            "groups": (_groups, "take the groups of `self.groups(parameters, settings)`"),
            "loss falls": (_learns, "the step goes against the gradient, by `lr` times something near 1"),
            "follows the rate": (_follows_the_rate, "multiply every change of a weight by its group's `lr`"),
            "resumes": (
                _resumes,
                "keep all that lasts from step to step in `self.state[weight]`, as tensors or numbers",
            ),
        },
    ),
    "schedule": (
        registry.SCHEDULES,
        {
            "rates": (_has_rates, "`factor` returns a number of at least 0 for every step from 0 to `run.steps`"),
            "same step, same rate": (_of_the_step, "compute `factor` from its arguments, and keep nothing in `self`"),
            "warm-up": (
                _warms_up,
                "use `run.warmup`, or say `warms_up = False`, which refuses `training.warmup_steps`",
            ),
            "branches": (_branches, "`branch_options` gives options under which only the decay knows `run.steps`"),
        },
    ),
    "init": (
        registry.INITS,
        {
            "fills": (_fills, "set parameters in place, by functions of torch.nn.init or methods such as normal_"),
            "same seed, same values": (_repeats, "draw by torch's own functions, not by a generator of your own"),
            "draws are named": (_named, "use `role`, `name` and the parameter's shape, not the order of calls"),
            "loading": (_loads, "what was loaded is never asked for; keep nothing outside of the parameters"),
        },
    ),
    "metric": (
        registry.METRICS,
        {
            "a number": (_is_a_number, "`measure` gives sums, which `value` makes a finite number of"),
            "batches": (_in_batches, "return sums over rows, never means: batches are added up"),
            "same rows, same number": (_same_again, "keep nothing in `self` between calls"),
            "leaves the model": (_leaves_the_model, "a metric reads the model and must not change it"),
        },
    ),
    "column": (
        registry.COLUMNS,
        {
            "a finished run": (_of_a_run, "return a number, a text or None"),
            "an older run": (_of_an_old_run, "read numbers by `record.numbers.get(key)`, and return None without them"),
        },
    ),
}
"""Kind -> its registry, and {title: (what is wrong of the entry of this name or None, where to look)}."""
