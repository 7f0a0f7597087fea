"""What plugins put in the place of functions, methods, classes and constants of ours, of torch's and of Trainer's.

A plugin registers parts by name, and a recipe says which are used. One that replaces a function in passing changes
every run of its process, and no recipe tells: gradients that are clipped otherwise, an average of weights, another
loss. What is there when the first plugin is loaded, or at the end of a module's import where that is later, is compared
with what is there in the end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, MethodType, ModuleType
from typing import Any

from .followed_loader import followed_spec
from .plugin_source import PLUGIN_MODULE

_OTHERS = (
    *("math", "random", "torch", "torch._tensor", "torch.nn", "torch.nn.functional", "torch.nn.init", "torch.autograd"),
    *("torch.nn.parameter", "torch.nn.modules.module", "torch.nn.modules.linear", "torch.nn.modules.sparse"),
    *("torch.nn.modules.dropout", "torch.nn.modules.normalization", "torch.nn.utils.clip_grad", "torch.nn.utils"),
    *("torch.optim", "torch.optim.optimizer", "torch.optim.adamw", "torch.optim.adam", "torch.optim.lr_scheduler"),
    *("transformers.trainer", "transformers.optimization", "transformers.trainer_callback"),
    *("transformers.modeling_utils", "accelerate.accelerator", "accelerate.optimizer", "accelerate.data_loader"),
    *("transformers.activations", "transformers.masking_utils", "transformers.modeling_rope_utils"),
    *("transformers.loss.loss_utils", "transformers.trainer_pt_utils"),
)
_COMPUTE = ("CPU", "CUDA", "Autograd", "AutogradCPU", "AutogradCUDA")
_SEARCHED = (
    *("torch.nn.", "torch.optim.", "torch.autograd", "torch.amp.", "torch.utils.data", "accelerate."),
    *("transformers.trainer", "transformers.integrations.", "transformers.masking_utils", "transformers.modeling_"),
)
"""How the names of further modules begin, in which functions of plugins are looked for: what else changes there is
theirs."""
_CONSTANTS = (bool, int, float, str, tuple, frozenset)
_MISSING = object()
_before: dict[str, dict[str, Any]] = {}
"""{module: {name: value}} as it was, of functions, classes, methods, constants and tables."""


class _Table(dict[str, Any]):
    """The entries of a table that others may add to: of a registry, or of names that a configuration chooses among."""


def remember() -> None:
    """Keeps what there is before the first plugin is executed, and from then on what a module of ours has that is
    imported; later calls change nothing."""
    if not _before:
        for name, module in _watched():
            _before[name] = dict(_entries(name, module))
        _before["torch.ops"] = dict.fromkeys(operators_replaced(), True)
        sys.meta_path.insert(0, _Imports())


class _Imports(MetaPathFinder):
    """Finds modules of ours as the others do, to keep what they have before a plugin that imports them gets them."""

    keeps_modules_of_hf_arch = True

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("hf_arch."):
            return None
        return followed_spec(fullname, path, target, self.keep, _keeps_modules)

    def keep(self, module: ModuleType) -> None:
        """Keeps what a module has that was imported just now; of other libraries' tables ours fill some at theirs."""
        fills = module.__name__.endswith(".compat")
        entries = dict(_entries(module.__name__, module)).items()
        kept = {name: entry for name, entry in entries if not (fills and type(entry) in (list, dict))}
        _before.setdefault(module.__name__, kept)


def _keeps_modules(finder: Any) -> bool:
    """Whether it is our finder, also one of before a reload, which is of another class."""
    return getattr(finder, "keeps_modules_of_hf_arch", False)


def replaced() -> list[str]:
    """Dotted names of what is no longer what it was, or comes from a plugin, sorted."""
    if not _before:  # no plugin was loaded
        return []
    found = {f"torch.ops.{name}" for name in operators_replaced() if name not in _before.get("torch.ops", {})}
    for module_name, module in _watched():
        before, now = _before.get(module_name, {}), dict(_entries(module_name, module))
        found |= {f"{module_name}.{name}" for name, value in now.items() if from_plugin(value)}
        found |= {f"{module_name}.{name}" for name in _hooks_of_plugins(module)}
        found |= {f"{module_name}.{name}" for name, value in before.items() if _differs(value, now.get(name, _MISSING))}
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(_SEARCHED) and module_name not in _OTHERS and isinstance(module, ModuleType):
            entries = _entries(module_name, module)
            found |= {f"{module_name}.{name}" for name, value in entries if from_plugin(value)}
    return sorted(found)


def attached(*holders: Any) -> list[str]:
    """What plugins put on these objects, of classes that are none of theirs: methods in the place of the class's own,
    and hooks. {class.name}, sorted."""
    found = set()
    for holder in holders:
        kind = type(holder)
        if from_plugin(kind):
            continue  # its own code, as the recipe names it
        names = [key for key, value in vars(holder).items() if hasattr(kind, key) and from_plugin(value)]
        found |= {f"{kind.__name__}.{name}" for name in (*names, *_hooks_of_plugins(holder))}
    return sorted(found)


def _hooks_of_plugins(holder: Any) -> list[str]:
    """The tables of hooks of a module of torch's, or of an object, in which there is a function of a plugin."""
    tables = {name: value for name, value in list(vars(holder).items()) if name.endswith("_hooks")}
    return [name for name, table in tables.items() if isinstance(table, dict) and any(map(from_plugin, table.values()))]


def from_plugin(value: Any) -> bool:
    """Whether a function or class was defined in a plugin, or a method or partial function is of one."""
    while isinstance(value, (partial, MethodType)):
        value = value.func if isinstance(value, partial) else value.__func__
    if isinstance(value, FunctionType):
        return str(value.__globals__.get("__name__")).startswith(PLUGIN_MODULE)
    return isinstance(value, type) and value.__module__.startswith(PLUGIN_MODULE)


def _wrapped_by_us(before: Any, now: Any) -> bool:
    """Whether it is a function around what was there that no plugin put there: of hf_arch, as a model of ours has it
    around a method of Trainer, or of torch's compiler, which also watches modules as they are made."""
    if not isinstance(now, FunctionType):
        return False
    home, inner = str(now.__globals__.get("__name__")), getattr(now, "__wrapped__", None)
    if inner is None:
        return home == "torch._dynamo.mutation_guard"
    return home.startswith(("hf_arch.", "torch._dynamo.")) and inner is before


def _watched() -> Iterator[tuple[str, ModuleType]]:
    for name, module in list(sys.modules.items()):
        if (name.startswith("hf_arch.") or name in _OTHERS) and isinstance(module, ModuleType):
            yield name, module


def _entries(module_name: str, module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions, classes and constants of a module, and the methods of the classes that it defines."""
    for name, value in list(vars(module).items()):
        if isinstance(value, type):
            yield name, value
            if value.__module__ == module_name:
                yield from ((f"{name}.{key}", of) for key, entry in list(vars(value).items()) if (of := _method(entry)))
        elif isinstance(value, FunctionType) or (callable(value) and module_name in _OTHERS):
            yield name, value
        elif name.isupper() and not name.startswith("_"):
            if isinstance(value, _CONSTANTS):
                yield name, value
            elif type(value) in (list, dict):
                yield name, value.copy()
            elif not isinstance(value, ModuleType):
                yield from _tables(name, value)


def operators_replaced() -> frozenset[str]:
    """`aten/operator/key` of what Python code has operators of torch compute: no shapes or decompositions, which
    modules of torch add as they are imported."""
    library = sys.modules.get("torch.library")
    found = map(str, getattr(library, "_impls", ()))
    return frozenset(one for one in found if one.startswith("aten/") and one.rpartition("/")[2] in _COMPUTE)


def _tables(name: str, value: Any) -> Iterator[tuple[str, _Table]]:
    """What an object keeps in mappings: itself, in its attributes, in those of its class. A registry of ours keeps who
    owns an entry; what a plugin has registered is in the recipe."""
    owned = getattr(value, "_owners", {})
    if isinstance(value, dict):
        yield name, _Table(dict.items(value))
    elif isinstance(value, Mapping):  # of several layers, the upper of which hide entries of the others
        yield name, _Table(value.items())
    held = {**vars(type(value)), **getattr(value, "__dict__", {})}
    for key, table in list(held.items()):
        if type(table) is dict and not key.startswith("__") and table is not owned:
            yield f"{name}.{key}", _Table({entry: of for entry, of in table.items() if entry not in owned})


def _method(entry: Any) -> Callable[..., Any] | None:
    """The function behind an entry of a class."""
    if isinstance(entry, (staticmethod, classmethod)):
        entry = entry.__func__
    elif isinstance(entry, property):
        entry = entry.fget
    return entry if isinstance(entry, FunctionType) else None


def _differs(before: Any, now: Any) -> bool:
    if _wrapped_by_us(before, now):
        return False
    if type(before) is not type(now):
        return True
    if isinstance(before, _Table):
        return any(_differs(value, now.get(key, _MISSING)) for key, value in before.items())
    if isinstance(before, dict):
        return before.keys() != now.keys() or any(_differs(before[key], now[key]) for key in before)
    if isinstance(before, list):
        return len(before) != len(now) or any(map(_differs, before, now))
    return bool(before != now) if isinstance(before, _CONSTANTS) else before is not now
