"""Initial values from (seed, parameter name): what two models have in common begins the same.

Ordinarily every draw moves one global generator on, so that a model with one more layer, another mixer or another
vocabulary begins with other numbers everywhere after the first difference, and an ablation compares two things at once.
Here each draw has a generator of its own, seeded by

    blake2b(seed, name of the parameter)

where the seed is a digest of torch's global generator as it stands when the outermost model is made. Two models made
after one `torch.manual_seed` therefore share every parameter of the same name, shape and rule, in whatever order they
are built; distributions are those of the rules. A draw that belongs to no parameter (`torch.rand(n)` in the
`init_weights` of a plugin) takes a generator of its module. The global generator is read, not moved.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_IN_PLACE = frozenset(
    getattr(Tensor, name)
    for name in ("normal_", "uniform_", "exponential_", "bernoulli_", "cauchy_", "log_normal_", "geometric_", "random_")
)
_FRESH = frozenset({torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.bernoulli})
_LIKE: dict[Any, str] = {torch.rand_like: "uniform_", torch.randn_like: "normal_"}
_SAME_PARAMETER = frozenset(
    {
        *(torch.empty_like, torch.zeros_like, torch.ones_like, torch.t, torch.transpose, torch.reshape),
        *(Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.view, Tensor.reshape, Tensor.__getitem__),
        *(Tensor.t, Tensor.transpose, Tensor.detach, Tensor.float, Tensor.to, Tensor.unsqueeze, Tensor.squeeze),
        *(Tensor.t_, Tensor.data.__get__, Tensor.T.__get__),  # type: ignore[attr-defined]
    }
)
"""What of a parameter is still drawn as that parameter: its views, and fresh tensors of its kind."""


def global_seed() -> int:
    """A digest of torch's global generator, which is left as it stands."""
    state = torch.random.get_rng_state()
    return _digest(ctypes.string_at(state.data_ptr(), state.numel()))  # fake tensors have no values for an operation


@contextmanager
def named_draws(model: nn.Module, seed: int, prefix: str) -> Iterator[NamedDraws]:
    """Within it, what is drawn for a parameter of `model` depends on `seed` and its name without `prefix`."""
    mode = NamedDraws(seed, ((name.removeprefix(prefix), tensor) for name, tensor in _tensors(model)))
    with mode:
        yield mode


class NamedDraws(TorchFunctionMode):
    """The mode of `named_draws`."""

    def __init__(self, seed: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self.seed = seed
        self._names: dict[int, str] = {}
        for name, tensor in tensors:
            self._names.setdefault(id(tensor), name)  # the first of tied names
        self._derived: dict[int, tuple[str, Tensor]] = {}  # held, so that no id is used again
        self._module: torch.Generator | None = None
        self._module_name = ""

    def enter_module(self, name: str) -> None:
        """What follows is drawn for the module of this name."""
        self._module_name, self._module = name, None
        self._derived.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        first = given.get("tensor", args[0] if args else given.get("input"))
        if func in _LIKE:
            args, given, func = (torch.empty_like(*args, **given),), {}, getattr(Tensor, _LIKE[func])
            name = self._name(first)
            return func(*args, generator=self._generator(name, args[0].device))
        if func in _IN_PLACE or _is_random_rule(func):
            if given.get("generator") is None and isinstance(first, Tensor) and first.device.type != "meta":
                given["generator"] = self._generator(self._name(first), first.device)
            return func(*args, **given)
        if func in _FRESH:
            device = torch.device(given.get("device") or (first.device if isinstance(first, Tensor) else "cpu"))
            if given.get("generator") is None and device.type != "meta":
                given["generator"] = self._generator(None, device)
            return func(*args, **given)
        result = func(*args, **given)
        if func in _SAME_PARAMETER and isinstance(result, Tensor) and (name := self._name(first)) is not None:
            self._derived[id(result)] = (name, result)
        return result

    def _name(self, tensor: Any) -> str | None:
        derived = self._derived.get(id(tensor))
        return self._names.get(id(tensor)) if derived is None else derived[0]

    def _generator(self, name: str | None, device: torch.device) -> torch.Generator:
        if name is not None:
            return torch.Generator(device).manual_seed(_digest(f"{self.seed} {name}".encode()))
        if self._module is None or self._module.device != device:
            seed = _digest(f"{self.seed} module {self._module_name}".encode())
            self._module = torch.Generator(device).manual_seed(seed)
        return self._module


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


@cache
def _is_random_rule(func: Callable[..., Any]) -> bool:
    """Whether it is a function of torch.nn.init that draws; transformers puts its own in their place meanwhile."""
    home = getattr(func, "__module__", "")
    return (
        home in ("torch.nn.init", "transformers.initialization") and "generator" in inspect.signature(func).parameters
    )


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1
