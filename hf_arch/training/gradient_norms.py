"""Norms of the gradient by kind of parameter: embeddings, mixer, ffn, norms, head, and whatever else there is."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_arch.core.registry import NORMS

GROUPS = ("embeddings", "mixer", "ffn", "norms", "head", "other")
WRAPPERS = re.compile(r"\b(module|_orig_mod|_checkpoint_wrapped_module)\.")


def parameter_groups(model: PreTrainedModel) -> dict[str, str]:
    """{parameter name: its group}. A tied head counts as embeddings, a norm inside a mixer as norms."""
    head = model.get_output_embeddings()
    registered = (entry for _, entry in NORMS.items() if isinstance(entry, type))
    norms = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, *registered)
    groups = {}
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            if isinstance(module, nn.Embedding):
                group = "embeddings"
            elif module is head:
                group = "head"
            elif isinstance(module, norms):
                group = "norms"
            else:
                group = next((part for part in prefix.split(".") if part in ("mixer", "ffn")), "other")
            groups[full] = group
    return groups


@torch.no_grad()
def gradient_norms(model: nn.Module, groups: dict[str, str]) -> dict[str, Tensor]:
    """{group: l2 norm of its gradients}, scalars on the device of the gradients; groups without gradients are left out.

    What wrappers (DDP, torch.compile, activation checkpointing) have put into the names is taken out again.
    """
    by_group: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            group = groups.get(WRAPPERS.sub("", name), "other")
            by_group.setdefault(group, []).append(parameter.grad)
    norms = {}
    for group in GROUPS:
        if gradients := by_group.get(group):
            norm = nn.utils.get_total_norm(gradients)
            norms[group] = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded gradients
    return norms
