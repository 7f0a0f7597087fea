"""The trainable parameters of a model, with what an optimiser has to know of each."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch import nn

from hf_arch.models.weight_decay import exempt_parameter_names
from hf_arch.optimizers.base import PLAIN, TrainedParameter

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def trained_parameters(model: Any, decayed: Collection[str] | None = None) -> list[TrainedParameter]:
    """Every trainable parameter, in the order of the model.

    Args:
        model: a causal LM of ours, or another module. decayed: names of the parameters that weight decay applies to;
            None takes every matrix that no module exempts (to be given where the model is wrapped by now).
    """
    if decayed is None:
        exempt = exempt_parameter_names(model)
        decayed = {name for name, _ in model.named_parameters() if name not in exempt}
    decayed = set(decayed)
    spec = getattr(getattr(model, "config", None), "parametrization_spec", None)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = {
        f"{prefix}.weight"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    matrices = set(matrix_names(model))
    found = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        in_layer = ".layers." in f".{name}" or name.startswith("losses.")
        factors = PLAIN
        if spec is not None:
            parametrization, options = spec
            factors = parametrization.factors(model.config, options, in_layer=in_layer, hidden_matrix=name in linear)
        layer = _LAYER.search(name)
        found.append(
            TrainedParameter(
                name, parameter, name in decayed, name in matrices, int(layer[1]) if layer else None, factors
            )
        )
    return found


def matrix_names(model: Any) -> list[str]:
    """Weights of the linear maps inside the blocks. Not the head, nor a map that carries a parameter which its mixer
    exempts from weight decay, such as Mamba's `dt_proj`: what it makes is no activation but a step size or a decay.
    """
    special = {
        f"{prefix}.{name}".rpartition(".")[0]
        for prefix, module in model.named_modules()
        for name in getattr(module, "no_weight_decay", ())
        if "." in name
    }
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        f"{prefix}.weight"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and prefix not in special
    ]


def scales_groups(model: Any) -> bool:
    """Whether the parametrisation of a model of ours gives parameters learning rates of their own."""
    spec = getattr(getattr(model, "config", None), "parametrization_spec", None)
    return spec is not None and bool(spec[0].changes_groups)
