"""From `training.optim` and `training.optim_args` to the builder of an optimiser, and whether it may be used so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

import hf_arch.optimizers.muon
import hf_arch.optimizers.trainer_names  # noqa: F401  both register what they hold
from hf_arch.core.errors import ConfigError
from hf_arch.core.options import parse_options
from hf_arch.core.plugins import plugin_error
from hf_arch.core.registry import OPTIMIZERS
from hf_arch.optimizers.base import OptimizerBuilder, OptimizerSettings, TrainedParameter, registered_name
from hf_arch.optimizers.parameters import trained_parameters
from hf_arch.optimizers.trainer_names import TrainerOptimizer

DEFAULT = "adamw_torch_fused"
ARGUMENTS = "training.optim_args"


def optimizer_names() -> list[str]:
    """Every name that `training.optim` may hold, those of plugins among them."""
    return list(OPTIMIZERS)


def choose_optimizer(training: Mapping[str, Any]) -> OptimizerBuilder:
    """The builder that a `training` section names, with its options. Raises `ConfigError` for an unknown name, option
    or value."""
    kind: type[OptimizerBuilder] = OPTIMIZERS.get(str(training.get("optim") or DEFAULT), "training.optim")
    given = training.get("optim_args")
    if issubclass(kind, TrainerOptimizer):
        return kind(None)
    values = dict(given) if isinstance(given, Mapping) else _read(given or "")
    return kind(parse_options(kind.Options, values, ARGUMENTS))


def trainer_arguments(training: Mapping[str, Any]) -> dict[str, Any]:
    """`optim` and `optim_args` as TrainingArguments take them; empty where Trainer does not know the optimiser."""
    if not isinstance(choose_optimizer(training), TrainerOptimizer):
        return {}
    given = training.get("optim_args")
    if isinstance(given, Mapping):
        given = ",".join(f"{key}={value}" for key, value in given.items())
    return {key: value for key, value in {"optim": training.get("optim"), "optim_args": given}.items() if value}


def _read(text: str) -> dict[str, Any]:
    """`momentum=0.9,nesterov=true` as plain values."""
    values: dict[str, Any] = {}
    for entry in text.replace(" ", "").split(","):
        key, equals, value = entry.partition("=")
        if entry and not equals:
            raise ConfigError(f"{ARGUMENTS}: {entry!r} is not of the form key=value", field=ARGUMENTS, value=entry)
        if entry:
            values[key] = _value(value)
    return values


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def check_launch_of(builder: OptimizerBuilder, *, sharded: bool, shared_states: bool) -> None:
    """Raises `ConfigError` where an optimiser would step shards of parameters, or share its states out, and cannot."""
    name = registered_name(type(builder))
    if sharded and not builder.shards:
        raise ConfigError(f"training.optim: {name!r} needs {builder.needs}; nearest for shards: {DEFAULT!r}")
    if shared_states and not builder.shards:
        raise ConfigError(f"training.optim: {name!r} does not share its states; nearest: {DEFAULT!r}")


def check_parametrization(builder: OptimizerBuilder, config: Any, *, zero_redundancy: bool = False) -> None:
    """Raises `ConfigError` where an optimiser would not follow the config's parametrisation, which scales groups."""
    spec = getattr(config, "parametrization_spec", None)
    if spec is None or not spec[0].changes_groups:
        return
    name = config.parametrization["type"]
    if not builder.follows_parametrization:
        raise ConfigError(
            f"training.optim: {registered_name(type(builder))!r} does not follow parametrization {name}, whose factors "
            "are AdamW's; use adamw_torch"
        )
    if zero_redundancy:
        raise ConfigError(f"training.zero_redundancy: not supported with parametrization {name}; use false")


def build_optimizer(
    builder: OptimizerBuilder, parameters: Sequence[TrainedParameter], settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """What the builder makes of the parameters, checked. Raises `ConfigError` of one line, which names the user's file
    and line where that raised an error: for what is no optimiser, for a parameter that is left out, given twice or not
    of the model, for decay of a parameter that is exempt, and for settings that are no numbers."""
    name = registered_name(type(builder))
    where = f"training.optim: {name!r}"
    if isinstance(builder, TrainerOptimizer):  # transformers' groups, whose tests are its own
        return builder.build(parameters, settings)
    try:
        optimizer = builder.build(parameters, settings)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{where}: {plugin_error(error)}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"{where}: build returned {type(optimizer).__name__}, expected a torch.optim.Optimizer")
    _check_groups(where, optimizer, parameters, settings)
    return optimizer


def _check_groups(
    where: str, optimizer: torch.optim.Optimizer, parameters: Sequence[TrainedParameter], settings: OptimizerSettings
) -> None:
    by_id = {id(entry.parameter): entry for entry in parameters}
    seen: set[int] = set()
    for group in optimizer.param_groups:
        rate = group.get("lr")
        if not isinstance(rate, (int, float)) or not math.isfinite(rate) or rate < 0:
            raise ConfigError(f"{where}: a group has the learning rate {rate!r}; expected a number of at least 0")
        for parameter in group["params"]:
            entry = by_id.get(id(parameter))
            if entry is None:
                raise ConfigError(
                    f"{where}: got a tensor of shape {list(parameter.shape)} that is not a trainable parameter"
                )
            if id(parameter) in seen:
                raise ConfigError(f"{where}: {entry.name} is given twice")
            seen.add(id(parameter))
            if group.get("weight_decay") and not entry.decays:
                raise ConfigError(
                    f"{where}: {entry.name} has weight decay {group['weight_decay']:g}, but it is exempt; take the "
                    "groups of `self.groups(parameters, settings)`"
                )
            wanted = settings.learning_rate * entry.factors.lr
            if entry.factors.lr != 1 and settings.learning_rate and not math.isclose(rate, wanted, rel_tol=1e-6):
                raise ConfigError(
                    f"{where}: {entry.name} has the learning rate {rate:g}; its parametrization asks for {wanted:g}"
                )
    missing = [entry.name for entry in parameters if id(entry.parameter) not in seen]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(f"{where}: {missing[0]}{more} would not be trained; every parameter has to be in a group")


def try_optimizer(builder: OptimizerBuilder, model: Any, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """`build_optimizer` on stand-ins for the parameters of `model` (which may be on the meta device), so that a mistake
    shows before anything is written."""
    stand_ins = [
        TrainedParameter(
            entry.name,
            nn.Parameter(torch.empty(entry.parameter.shape, dtype=entry.parameter.dtype, device="cpu")),
            *(entry.decays, entry.matrix, entry.layer, entry.factors),
        )
        for entry in trained_parameters(model)
    ]
    return build_optimizer(builder, stand_ins, settings)
