"""Bytes of tensors: in a cache, and at the peak of a piece of work.

The peak is counted from the allocator's own records, so that it is of the work alone: exact, the same at every run,
and blind to what Python, its libraries and other models in the process take.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from hf_arch.environment import set_variable


def tensor_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of the storages behind these tensors, shared ones once; what is no tensor counts nothing."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors
        if isinstance(tensor, torch.Tensor)
    }
    return sum(storages.values())


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors that a transformers cache holds, whatever its layers call them."""
    return tensor_bytes(_tensors(cache, set()))


def _tensors(value: Any, seen: set[int]) -> Iterable[torch.Tensor]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, seen)
    elif type(value).__module__.startswith(("transformers.", "hf_arch.")):
        yield from _tensors(getattr(value, "__dict__", {}), seen)


def peak_tensor_bytes(action: Callable[[], None], device: torch.device) -> int:
    """The most bytes that `action` holds at once beyond what is held before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    set_variable("KINETO_LOG_LEVEL", "6")  # its notes of starting and stopping belong to nobody's output
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
