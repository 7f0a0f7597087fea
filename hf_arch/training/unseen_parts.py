"""What of a model no configuration tells, measured: weights that the optimiser does not know, hooks on gradients, types
of parameters, noise in training, and whether it computes something else when it is scored.

A part of a plugin may do any of these without an error, and its loss is compared with that of a model that does not:

    untracked        numbers that are no parameters and change in training: buffers, tensors kept in attributes from
                     the start; of what is made on the way what changes between two steps, and not with the row that the
                     model reads (as what it keeps of its last one does)
    uncounted        parameters that the model has after training beyond those that its cost counts, or how many fewer
    gradients        {place: [ratio, numbers]} of parameters whose gradient is not that of the loss (`true_gradients`),
                     where a plugin has part in the run
    gradient_hooks   parameters whose gradient is changed before the optimiser sees it
    dtypes           {type: numbers} of the parameters
    noise            rms of what two forward passes in training mode differ by, over the rms of logits
    mode_gap         rms of what training mode and evaluation mode differ by, over the rms of logits: an average of
                     weights that is scored in their place, or branches that are left out
    settled_gap      the same once statistics have followed that row through passes in training mode, where it was more
                     than rounding: smaller where it was of statistics of a batch. None where the model is noisy
    unmoved          numbers of matrices that training left as they began, but for one factor: counted, and not learned
    product_types    in which types it multiplies, in training and when it is scored (`product_types`), where a plugin
                     has part in the run
    given_up         numbers of parameters that learned as the run began, and at its end are frozen, or no longer there
                     (tied to others)
    forward_gradients
                     parameters whose gradient passes change without a loss, where a plugin has part in the run
    touched          parameters that a token passes through over those called active, of runs with plugins (`touched`)
    held_state       bytes of the cache after the row, over those that the cost declares, where a plugin has part in the
                     run; None where a part takes no cache
    moved, memory, swapped, rates, settings
                     weights, and what the optimiser keeps and is set to, that others than it change (`between_steps`),
                     where a plugin has part in the run
    reloaded, counts, clock
                     what logits rest on besides the weights, where a plugin has part in the run (`hidden_state`)
    starts           {name of a matrix, layers as *: [hash of its first values, numbers]}: equal under two seeds where
                     it was not drawn but loaded, or frozen from elsewhere
    products, least_products, training_products, scoring_products, most_work
                     matrix products that torch counts, over those that the cost of the model says (`counted_products`);
                     in their place `uncountable`, the reason, where a part of a plugin cannot be counted
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, TrainerCallback

from hf_arch.core.plugin_source import PLUGIN_MODULE
from hf_arch.layers.filled_cache import cache_bytes
from hf_arch.models.cost import model_cost
from hf_arch.training.branches import undisturbed
from hf_arch.training.compat import has_gradient_hook
from hf_arch.training.counted_products import counted_products
from hf_arch.training.hidden_state import hidden_state
from hf_arch.training.plugin_globals import PluginGlobals
from hf_arch.training.product_types import product_types
from hf_arch.training.touched import touched_share
from hf_arch.training.true_gradients import untrue_gradients

_DEEPEST = 3
"""Lists in lists in which tensors are looked for."""
_SAMPLED = 64
"""Numbers of each matrix that its start is known by."""
_SETTLING, _ROUNDS = 20, 12
"""Passes between looks, and looks: an average that follows a hundredth in each pass comes nine tenths of its way."""
_SETTLES = 0.75
"""Of the gap: where less of it is left no more passes are needed to know that it was one of statistics."""
_ROUNDING = 1e-4
"""Of the rms of logits."""
_ONE_FACTOR = 1e-4
"""Of the values of a matrix, what is left of its change but for one factor, as by weight decay."""
_TINY = torch.finfo(torch.float32).tiny
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class UnseenParts:
    """Looks at a model before its first step, and again after its last.

    Args:
        of_plugins: whether it may have a backward pass or a cost that no test of this package has seen. Whether
            gradients are those of the loss takes two forward passes for each kind of parameter, so that only these are
            asked.
    """

    def __init__(self, model: nn.Module, of_plugins: bool = True) -> None:
        self.of_plugins = of_plugins
        self.before = {name: _contents(tensor) for name, tensor in _not_parameters(model)}
        self.starts = _starts(model)
        self.first_values = dict(_samples(model))
        self.learning = {name: one.numel() for name, one in model.named_parameters() if one.requires_grad}
        self.globals = PluginGlobals(model)
        self.on_the_way: dict[str, tuple[Any, ...]] = {}

    def look_again(self, model: nn.Module) -> None:
        """At what was made since, after a step."""
        found = {name: _contents(tensor) for name, tensor in _not_parameters(model)}
        self.on_the_way = {**{name: was for name, was in found.items() if name not in self.before}, **self.on_the_way}

    def facts(self, model: nn.Module, row: Tensor, whole: Tensor | None = None) -> dict[str, Any]:
        """These numbers of the trained model; row: int64 [1, T], real tokens; whole: a longer row for what grows with
        its length."""
        untracked = self._untracked(model, row)  # before passes in training mode, which may move averages
        modes = _by_mode(model, row)
        return {
            "untracked": untracked,
            "unmoved": self._unmoved(model),
            "given_up": self._given_up(model),
            **modes,
            **(_hidden_state(model, row, self.globals) if self.of_plugins else {}),
            "settled_gap": _settled_gap(model, row, modes),  # after what keeps averages was looked at: it moves them
            **(_of_plugins(model, row) if self.of_plugins else {}),
            "uncounted": _uncounted(model, row),
            "gradients": _untrue_gradients(model, row) if self.of_plugins else {},
            "gradient_hooks": sum(parameter.numel() for parameter in _hooked(model)),
            "dtypes": _types(model),
            **self._counted(model, row if whole is None else whole),
            "starts": self.starts,
        }

    def _counted(self, model: nn.Module, row: Tensor) -> dict[str, Any]:
        with _as_it_was(model, row.device):
            try:
                return counted_products(model, row, self.of_plugins)
            except Exception as error:  # an operation of a plugin may refuse torch's counters: no run is lost by that
                if not self.of_plugins:
                    raise
                reason, _, _ = str(error).strip().partition("\n")
                return {"uncountable": f"{type(error).__name__}: {reason}"}

    def _unmoved(self, model: nn.Module) -> int:
        now = dict(_samples(model))
        unmoved = {name for name, was in self.first_values.items() if name in now and _one_factor(was, now[name])}
        return sum(one.numel() for name, one in model.named_parameters() if name in unmoved and one.requires_grad)

    def _given_up(self, model: nn.Module) -> int:
        now = {name for name, one in model.named_parameters() if one.requires_grad}
        return sum(count for name, count in self.learning.items() if name not in now)

    def _untracked(self, model: nn.Module, row: Tensor) -> int:
        known = {**self.before, **self.on_the_way}
        changed = {
            name: tensor.numel()
            for name, tensor in _not_parameters(model)
            if name in known and known[name] != _contents(tensor)
        }
        late = [name for name in changed if name in self.on_the_way]
        kept_of_a_row = _changed_by_rows(model, row, late) if late else set()
        return sum(count for name, count in changed.items() if name not in kept_of_a_row)


class LookAgain(TrainerCallback):
    """Lets the unseen parts look at the model after its first step here, and in the middle of the others."""

    def __init__(self, parts: UnseenParts) -> None:
        self.parts, self.steps = parts, 0

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.steps += 1
        if model is not None and (self.steps == 1 or state.global_step == state.max_steps // 2):
            self.parts.look_again(getattr(model, "module", model))


def _types(model: nn.Module) -> dict[str, int]:
    found: Counter[str] = Counter()
    for parameter in model.parameters():
        found[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return dict(found)


def _starts(model: nn.Module) -> dict[str, list[str | int]]:
    """Of matrices that weight decay reaches and that are no constants: others have one start under every seed."""
    digests: dict[str, Any] = {}
    numbers: Counter[str] = Counter()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for name, sample in _samples(model):
        place = re.sub(r"\.\d+\.", ".*.", name)
        digests.setdefault(place, hashlib.sha256()).update(sample.numpy().tobytes())
        numbers[place] += sizes[name]
    return {place: [digest.hexdigest()[:12], numbers[place]] for place, digest in digests.items()}


def _samples(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A few values of each matrix that weight decay reaches and that is no constant."""
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten()
        if parameter.ndim < 2 or getattr(parameter, "_no_weight_decay", False) or values.device.type == "meta":
            continue
        sample = values[:: max(1, values.numel() // _SAMPLED)][:_SAMPLED].float().cpu()
        if sample.numel() > 1 and not bool((sample == sample[0]).all()):
            yield name, sample.clone()


def _one_factor(was: Tensor, now: Tensor) -> bool:
    factor = float(was @ now) / float(was @ was)
    return float((now - factor * was).norm()) <= _ONE_FACTOR * float(now.norm())


def _not_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Floating-point tensors that the model holds and that are none of its parameters, each once, by where they are."""
    known = {id(parameter) for parameter in model.parameters()}
    for path, module in model.named_modules():
        places: Mapping[str, Any] = {**dict(module.named_buffers(recurse=False)), **_attributes(module)}
        for key, value in places.items():
            for name, tensor in _tensors(f"{path}.{key}", value):
                if id(tensor) not in known and tensor.dtype in _TYPES:
                    known.add(id(tensor))
                    yield name, tensor
    for module_name, text in list(sys.modules.items()):
        if module_name.startswith(PLUGIN_MODULE):
            for name, tensor in _tensors(module_name, dict(vars(text))):
                if id(tensor) not in known and tensor.dtype in _TYPES:
                    known.add(id(tensor))
                    yield name, tensor


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module keeps outside its tables of parameters, buffers and modules."""
    return {key: value for key, value in vars(module).items() if key not in ("_parameters", "_buffers", "_modules")}


def _tensors(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Tensors in a value, in lists and mappings of it, and in modules there that are registered nowhere."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module) and depth:
        yield from ((f"{name}.{key}", tensor) for key, tensor in (*value.named_parameters(), *value.named_buffers()))
    elif isinstance(value, Mapping) and depth < _DEEPEST:
        for key, entry in list(value.items()):
            yield from _tensors(f"{name}.{key}", entry, depth + 1)
    elif isinstance(value, (list, tuple)) and depth < _DEEPEST:
        for index, entry in enumerate(value):
            yield from _tensors(f"{name}.{index}", entry, depth + 1)


def _contents(tensor: Tensor) -> tuple[Any, ...]:
    """What changes where a tensor does: its shape and two sums over it."""
    if tensor.device.type == "meta":
        return (tuple(tensor.shape),)
    values = tensor.detach().double()
    return tuple(tensor.shape), float(values.sum()), float(values.square().sum())


def _hooked(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters with a hook on their gradient, and those of modules with a hook on what flows back through them."""
    found: dict[int, nn.Parameter] = {}
    for parameter in model.parameters():
        if has_gradient_hook(parameter):
            found[id(parameter)] = parameter
    for module in model.modules():
        if has_gradient_hook(module):
            found |= {id(parameter): parameter for parameter in module.parameters()}
    yield from found.values()


@torch.no_grad()
def _changed_by_rows(model: nn.Module, row: Tensor, names: list[str]) -> set[str]:
    """Those of the tensors that hold something of the row that the model was given last."""
    held = []
    with _as_it_was(model, row.device):
        model.eval()
        for ids in (row, (row + 1) % model.config.vocab_size):  # type: ignore[union-attr, operator]
            _logits(model, ids)
            held.append({name: _contents(tensor) for name, tensor in _not_parameters(model)})
    return {name for name in names if held[0].get(name) != held[1].get(name)}


def _uncounted(model: Any, row: Tensor) -> int:
    """Of parameters that are whole here."""
    with undisturbed(model):
        counted = model_cost(model.config, row.shape[1]).params_total
    return sum(parameter.numel() for parameter in model.parameters()) - int(counted)


def _untrue_gradients(model: nn.Module, row: Tensor) -> dict[str, list[float]]:
    with _as_it_was(model, row.device):
        return untrue_gradients(model, row)


def _hidden_state(model: nn.Module, row: Tensor, plugins: PluginGlobals) -> dict[str, float | None]:
    with _as_it_was(model, row.device):
        return hidden_state(model, row, plugins)


@torch.no_grad()
def _by_mode(model: nn.Module, row: Tensor) -> dict[str, float]:
    """`noise` and `mode_gap`. Buffers, modes and random numbers are afterwards as they were."""
    with _as_it_was(model, row.device):
        scored = _logits(model.eval(), row)
        model.train()
        passes = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            passes.append(_logits(model, row))
        model.eval()
    size = max(_rms(scored), _TINY)
    first, second = passes
    return {"noise": _rms(first - second) / size, "mode_gap": _rms(first - scored) / size}


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


@torch.no_grad()
def _settled_gap(model: nn.Module, row: Tensor, modes: dict[str, float]) -> float | None:
    if modes["noise"] > _ROUNDING:
        return None
    if modes["mode_gap"] <= _ROUNDING:
        return modes["mode_gap"]
    gap = modes["mode_gap"]
    with _as_it_was(model, row.device):
        for _ in range(_ROUNDS):
            model.train()
            for _ in range(_SETTLING):
                trained = _logits(model, row)
            scored = _logits(model.eval(), row)
            gap = min(gap, _rms(trained - scored) / max(_rms(scored), _TINY))
            if gap < _SETTLES * modes["mode_gap"]:
                break
    return gap


def _of_plugins(model: nn.Module, row: Tensor) -> dict[str, Any]:
    """What no test of this package has seen of a part."""
    return {
        "forward_gradients": _forward_gradients(model, row),
        "held_state": _held_state(model, row),
        "touched": touched_share(model, row),
        "product_types": _product_types(model, row),
    }


def _product_types(model: nn.Module, row: Tensor) -> dict[str, dict[str, float]]:
    with _as_it_was(model, row.device):
        try:
            return product_types(model, row)
        except Exception:  # an operation of a plugin may refuse to be looked at
            return {}


def _held_state(model: Any, row: Tensor) -> float | None:
    length = row.shape[1]
    with undisturbed(model):
        cache = DynamicCache(config=model.config)
        try:
            model(input_ids=row, past_key_values=cache)
        except Exception:  # a part of a plugin may raise anything
            return None
        declared, held = model_cost(model.config, length).state_bytes(length), cache_bytes(cache)
    return (held + 1) / (declared + 1)


def _forward_gradients(model: nn.Module, row: Tensor) -> int:
    """Numbers of the parameters whose gradient a pass changes without a loss: one that has a loss of its own, in the
    forward pass or in a backward pass that adds to what it is given (here zeros), or that multiplies what earlier parts
    of a batch have left."""
    kept = {parameter: parameter.grad for parameter in model.parameters() if parameter.requires_grad}
    with _as_it_was(model, row.device), torch.enable_grad():
        try:
            for parameter in kept:
                parameter.grad = torch.ones_like(parameter)
            logits = _logits(model.train(), row)
            if logits.requires_grad:
                logits.backward(torch.zeros_like(logits))
            same = [one for one in kept if one.grad is not None and bool(((one.grad == 1) | one.grad.isnan()).all())]
            return sum(one.numel() for one in kept) - sum(one.numel() for one in same)
        finally:
            for parameter, was in kept.items():
                parameter.grad = was


def _logits(model: nn.Module, row: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=row, use_cache=False).logits
    return logits.float()


@contextmanager
def _as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            model.train(was_training)  # what a module does where the mode changes, first
            for module, was in modes.items():
                module.training = was
            for name, buffer in model.named_buffers():
                if name in buffers and buffers[name].shape == buffer.shape:
                    buffer.copy_(buffers[name])
