"""What is measured of a model before its first step, for the audit: how large each branch is against the residual
stream, where depthwise convolutions are, its loss, and a fingerprint of the weights.

One forward pass of one short row, in evaluation mode, whose random numbers are given back: training is what it would be
without it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_arch.core.plugins import plugin_of_module
from hf_arch.layers.compat import attention_implementation, uses_flash_attention
from hf_arch.models.branch_scales import SITES
from hf_arch.ops.backend import use_fla
from hf_arch.ops.native import all_built
from hf_arch.ops.rotary import KERNELS as ROTARY
from hf_arch.training.branches import model_layers, undisturbed, watched
from hf_arch.training.compat import TorchDispatchMode

FIRST_LOOK = ("init_fingerprint", "initial_loss", "branch_scale", "short_convolution", "kernels")
LONGEST = 256
"""Tokens of the row that is looked at."""
LONGEST_KERNEL = 16
KINDS = 8
"""Of tokens in a row, for a loss that says something."""
SAMPLED = 64
"""Numbers of each parameter that enter the fingerprint."""


def first_look(model: nn.Module, input_ids: Tensor) -> dict[str, Any]:
    """`branch_scale`, `short_convolution`, `kernels`, `initial_loss` and `init_fingerprint`, as RunRecord holds them.

    Args:
        model: a causal LM of ours, before it is wrapped. input_ids: int64 [B, T], real rows; the first one is taken.
    """
    row = input_ids[:1, :LONGEST].to(next(model.parameters()).device)
    convolved: set[int] = set()
    with undisturbed(model), watched(model) as ratios, _convolutions(model, convolved):
        logits = model(input_ids=row, use_cache=False).logits
    return {
        "init_fingerprint": fingerprint(model),
        "initial_loss": _next_token_loss(logits, row),
        "branch_scale": {site: [layer.get(site) for layer in ratios] for site in SITES},
        "short_convolution": {"layers": sorted(convolved)},
        "kernels": _kernels(model, torch.empty(1, 2, device=row.device)),
    }


def after_steps(look: dict[str, Any]) -> dict[str, Any]:
    """A first look where steps have been taken since: torch took the place of kernels that could not be built."""
    return look if all_built() or look.get("kernels") != "compiled C" else {**look, "kernels": "torch"}


def _next_token_loss(logits: Tensor, row: Tensor) -> float | None:
    """Of a row [1, T] in nats, over the tokens that follow another one, each kind of token counted once: a row of one
    token over and over says nothing. None for fewer than `KINDS` kinds, and where it is no finite number."""
    targets = row[0, 1:]
    other = targets != row[0, :-1]
    kinds = targets[other].unique()
    if len(kinds) < KINDS:
        return None
    losses = nn.functional.cross_entropy(logits[0, :-1].float(), targets, reduction="none")
    loss = float(torch.stack([losses[other & (targets == kind)].mean() for kind in kinds]).mean())
    return loss if math.isfinite(loss) else None


def fingerprint(model: nn.Module) -> str:
    """Hash over a part of every parameter: equal for two models with the same initial weights."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        step = max(1, flat.numel() // SAMPLED)
        digest.update(name.encode() + flat[::step][:SAMPLED].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def optimizer_facts(optimizer: Any) -> dict[str, Any]:
    """What stepped the parameters: the class, the hash of its plugin where it is of one, how many steps it counted, and
    of each group its settings, how many numbers are in it, and how many of them weight decay should leave alone."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    groups = [
        {
            **{key: _plain(group[key]) for key in ("lr", "weight_decay", "betas", "momentum", "eps") if key in group},
            "lr": float(group.get("initial_lr", group.get("lr", 0.0))),
            "parameters": sum(parameter.numel() for parameter in group["params"]),
            "exempt": sum(parameter.numel() for parameter in group["params"] if _is_exempt(parameter)),
        }
        for group in inner.param_groups
    ]
    plugin = plugin_of_module(type(inner).__module__)
    code = {} if plugin is None else {"code": plugin.source.digest[:16]}
    counts = [float(kept["step"]) for kept in inner.state.values() if isinstance(kept, dict) and "step" in kept]
    steps = {"steps": int(max(counts))} if counts else {}
    return {"class": type(inner).__name__, **code, **steps, "groups": groups}


def _is_exempt(parameter: Tensor) -> bool:
    """Whether weight decay should leave a parameter alone (`hf_arch.models.weight_decay`)."""
    return parameter.ndim < 2 or getattr(parameter, "_no_weight_decay", False)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@contextmanager
def _convolutions(model: nn.Module, found: set[int]) -> Iterator[None]:
    """Enters the layers with a depthwise convolution into `found`: those that have such a module, and those in which
    such an operation runs."""
    inside: list[int] = []
    handles = []

    def leave(*_: Any) -> None:
        inside.pop()

    for index, layer in enumerate(model_layers(model)):
        if any(_is_depthwise(module) for module in layer.modules()):
            found.add(index)
        handles.append(layer.register_forward_pre_hook(lambda *_, index=index: inside.append(index)))
        handles.append(layer.register_forward_hook(leave))
    try:
        with _Convolutions(inside, found):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _is_depthwise(module: nn.Module) -> bool:
    """A convolution of each channel by itself over a few tokens."""
    return (
        isinstance(module, nn.Conv1d)
        and module.groups == module.in_channels > 1
        and 1 < module.kernel_size[0] <= LONGEST_KERNEL
    )


def _kernels(model: Any, like: Tensor) -> str:
    """Where recurrences run, and attention where that is no plain product of torch."""
    used = ["fla"] if use_fla(like) else []
    if ROTARY.for_tensors(like) is not None:  # the smallest source: whether the compiler works
        used.append("compiled C")
    if uses_flash_attention(model.config):
        used.append(attention_implementation(model.config))
    return " ".join(used) or "torch"


class _Convolutions(TorchDispatchMode):
    """Sees the convolutions that run, also those of a user's own functions."""

    def __init__(self, inside: list[int], convolved: set[int]) -> None:
        super().__init__()
        self.inside, self.convolved = inside, convolved

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default and self.inside:
            weight, groups = args[1], args[8]
            if groups > 1 and weight.shape[1] == 1 and 1 < weight.shape[-1] <= LONGEST_KERNEL:
                self.convolved.add(self.inside[-1])
        return func(*args, **(kwargs or {}))
