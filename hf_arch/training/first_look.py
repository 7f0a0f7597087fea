"""What is measured of a model before its first step, for the audit: how large each branch is against the residual
stream, where depthwise convolutions are, and a fingerprint of the weights.

One forward pass of one short row, in evaluation mode, whose random numbers are given back: training is what it would be
without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_arch.ops.backend import use_fla
from hf_arch.training.compat import TorchDispatchMode

FIRST_LOOK = ("init_fingerprint", "branch_scale", "short_convolution", "kernels")
LONGEST = 256
"""Tokens of the row that is looked at."""
LONGEST_KERNEL = 16
SAMPLED = 64
"""Numbers of each parameter that enter the fingerprint."""


def first_look(model: nn.Module, input_ids: Tensor) -> dict[str, Any]:
    """`branch_scale`, `short_convolution`, `kernels` and `init_fingerprint`, as RunRecord holds them.

    Args:
        model: a causal LM of ours, before it is wrapped. input_ids: int64 [B, T], real rows; the first one is taken.
    """
    layers = getattr(getattr(model, "model", None), "layers", None)
    found: dict[str, Any] = {"init_fingerprint": fingerprint(model)}
    if layers is None:
        return found
    row = input_ids[:1, :LONGEST].to(next(model.parameters()).device)
    branches = {site: [None] * len(layers) for site in ("mixer", "ffn")}  # type: dict[str, list[float | None]]
    convolved: set[int] = set()
    inside: list[int] = []
    with ExitStack() as hooks, _undisturbed(model, row.device):
        for index, layer in enumerate(layers):
            for handle in _watched(layer, index, branches, inside):
                hooks.callback(handle.remove)
            if any(_is_depthwise(module) for module in layer.modules()):
                convolved.add(index)
        hooks.enter_context(_Convolutions(inside, convolved))
        model(input_ids=row, use_cache=False)
    return {
        **found,
        "branch_scale": branches,
        "short_convolution": {"layers": sorted(convolved)},
        "kernels": _kernels(model, torch.empty(1, 2, device=row.device)),
    }


def fingerprint(model: nn.Module) -> str:
    """Hash over a part of every parameter: equal for two models that begin alike."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        step = max(1, flat.numel() // SAMPLED)
        digest.update(name.encode() + flat[::step][:SAMPLED].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def optimizer_facts(optimizer: Any) -> dict[str, Any]:
    """What stepped the parameters: the class, and of each group its settings and how many numbers are in it."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    groups = [
        {
            **{key: _plain(group[key]) for key in ("lr", "weight_decay", "betas", "momentum", "eps") if key in group},
            "lr": float(group.get("initial_lr", group.get("lr", 0.0))),
            "parameters": sum(parameter.numel() for parameter in group["params"]),
        }
        for group in inner.param_groups
    ]
    return {"class": type(inner).__name__, "groups": groups}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """No gradients, evaluation mode, and the random numbers as they were."""
    training = {module: module.training for module in model.modules()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, was in training.items():
                module.training = was


def _watched(layer: Any, index: int, branches: dict[str, list[float | None]], inside: list[int]) -> Iterator[Any]:
    """Hooks on one layer: what its stream writes at each site, and which layer is running."""

    def enter(*_: Any) -> None:
        inside.append(index)

    def leave(*_: Any) -> None:
        inside.pop()

    def written(_module: Any, args: tuple[Any, ...], state: Any) -> None:
        if args[0] != "write":
            return
        before, out, site = args[1][0], args[2], args[3]
        delta = state[0] - before if state[0].shape == before.shape else out
        stream = _rms(before)
        branches[site][index] = _rms(delta) / stream if stream > 0 else None

    yield layer.register_forward_pre_hook(enter)
    yield layer.register_forward_hook(leave)
    yield layer.stream.register_forward_hook(written)


def _rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())


def _is_depthwise(module: nn.Module) -> bool:
    """A convolution of each channel by itself over a few tokens."""
    return (
        isinstance(module, nn.Conv1d)
        and module.groups == module.in_channels > 1
        and 1 < module.kernel_size[0] <= LONGEST_KERNEL
    )


def _kernels(model: Any, like: Tensor) -> str:
    """Where recurrences run, and attention where that is no plain product of torch."""
    attention = str(getattr(model.config, "_attn_implementation", None) or "")
    return "fla" * use_fla(like) + f" {attention}" * ("flash" in attention) or "torch"


class _Convolutions(TorchDispatchMode):
    """Sees the convolutions that run, also those of a user's own functions."""

    def __init__(self, inside: list[int], convolved: set[int]) -> None:
        super().__init__()
        self.inside, self.convolved = inside, convolved

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in str(func) and self.inside and len(args) > 8:
            weight, groups = args[1], args[8]
            if groups > 1 and weight.shape[1] == 1 and 1 < weight.shape[-1] <= LONGEST_KERNEL:
                self.convolved.add(self.inside[-1])
        return func(*args, **(kwargs or {}))
