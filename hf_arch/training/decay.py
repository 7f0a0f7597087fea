"""Which parameters weight decay applies to: matrices, but for what a mixer exempts."""

from __future__ import annotations

import torch

from hf_arch.models.weight_decay import exempt_parameter_names


def decay_parameter_names(model: torch.nn.Module) -> list[str]:
    """Names of the trainable parameters with two or more dimensions that no module exempts by its `no_weight_decay`."""
    exempt = exempt_parameter_names(model)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in exempt]
