"""Which parameters weight decay applies to: matrices, but for what a mixer exempts."""

from __future__ import annotations

import torch


def decay_parameter_names(model: torch.nn.Module) -> list[str]:
    """Names of the trainable parameters with two or more dimensions that no module exempts by its `no_weight_decay`."""
    exempt = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in getattr(module, "no_weight_decay", ())
    }
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim >= 2 and name not in exempt
    ]
