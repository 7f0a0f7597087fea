"""The names under which a model is handed its cache, made one.

transformers 5.24 calls the argument `cache`, 5.23 `past_key_values`. Both are accepted under either version. Any other
name would be swallowed by `**kwargs`, and the model would compute without a cache: it is refused instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from transformers.cache_utils import Cache

from ..layers.compat import CACHE_ARGUMENT

CACHE_NAMES = ("past_key_values", "cache")
REFUSED_NAMES = (
    "cache_params",
    "inference_params",
    "kv_cache",
    "layer_past",
    "mems",
    "past",
    "past_buckets_states",
    "past_key_value",
    "past_states",
    "state",
    "states",
)
"""What other models and older versions call a cache."""


def one_cache(past_key_values: Any, cache: Any, others: Mapping[str, Any]) -> Any:
    """The cache of a call that has it under one name, the other, both (the same object), or neither (None).

    Args:
        others: the other keyword arguments of the call, by name.

    Raises:
        ValueError: two different caches, or a cache under a name that this model does not know.
    """
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ValueError("past_key_values, cache: two different caches are given; pass one of them")
    for name, value in others.items():
        if value is not None and (name in REFUSED_NAMES or isinstance(value, Cache)):
            raise ValueError(f"{name}: this model has no such argument; pass the cache as `{CACHE_ARGUMENT}`")
    return past_key_values if cache is None else cache


def accept_either_name(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of transformers that takes a cache, now under either name, whichever name it knows."""

    @wraps(method)
    def accept(self: Any, *args: Any, **kwargs: Any) -> Any:
        past_key_values, cache = (kwargs.pop(name, None) for name in CACHE_NAMES)
        given = one_cache(past_key_values, cache, kwargs)
        return method(self, *args, **kwargs, **({} if given is None else {CACHE_ARGUMENT: given}))

    return accept


class EitherName(dict[str, Any]):
    """What `generate` calls a model with. The cache is one entry under the name of this version of transformers, which
    libraries that change the inputs on their way, as PEFT's prompts do, may read and set under either name."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__()
        self.update(*given, **named)

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(_canonical(name))

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(_canonical(name), value)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(_canonical(name))

    def __contains__(self, name: object) -> bool:
        return super().__contains__(_canonical(name))

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(_canonical(name), default)

    def pop(self, name: str, *default: Any) -> Any:
        return super().pop(_canonical(name), *default)

    def setdefault(self, name: str, default: Any = None) -> Any:
        return super().setdefault(_canonical(name), default)

    def update(self, *others: Any, **named: Any) -> None:
        for name, value in dict(*others, **named).items():
            self[name] = value

    def __ior__(self, others: Any) -> EitherName:  # type: ignore[override]
        self.update(others)
        return self

    def __or__(self, others: Any) -> EitherName:  # type: ignore[override]
        return EitherName(self).__ior__(others)

    def copy(self) -> EitherName:
        return EitherName(self)


def _canonical(name: Any) -> Any:
    return CACHE_ARGUMENT if name in CACHE_NAMES else name


def cache_of(output: Any) -> Any:
    """The cache in a model's or `generate`'s output, under the name that this version of transformers gives it."""
    return getattr(output, CACHE_ARGUMENT)
