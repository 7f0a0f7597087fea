"""Parameter groups of AdamW for a model whose parametrisation scales learning rates with size."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from hf_arch.core.errors import ConfigError
from hf_arch.layers.parametrization import Factors

PLAIN = Factors()


def scaled_groups(
    model: Any, decayed: Collection[str], *, lr: float, weight_decay: float, eps: float
) -> list[dict[str, Any]]:
    """The groups, the ones at the plain learning rate first (it is the one that is logged).

    Args:
        model: with a config of ours. decayed: names of the parameters that weight decay applies to.
    """
    parametrization, options = model.config.parametrization_spec
    head = model.get_output_embeddings()
    matrices = {
        f"{prefix}.weight"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    groups: dict[tuple[Factors, bool], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_layer = ".layers." in f".{name}" or name.startswith("losses.")
            factors = parametrization.factors(model.config, options, in_layer=in_layer, hidden_matrix=name in matrices)
            groups.setdefault((factors, name in decayed), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: abs(item[0][0].lr - 1))
    return [
        {
            "params": parameters,
            "lr": lr * factors.lr,
            "weight_decay": weight_decay * factors.weight_decay if decays else 0.0,
            "eps": eps * factors.eps,
        }
        for (factors, decays), parameters in ordered
    ]


def scales_groups(model: Any) -> bool:
    """Whether the parametrisation of a model of ours gives parameters learning rates of their own."""
    spec = getattr(getattr(model, "config", None), "parametrization_spec", None)
    return spec is not None and bool(spec[0].changes_groups)


def check_optimizer(config: Any, optim: str, *, zero_redundancy: bool) -> None:
    """Raises `ConfigError` where an optimiser would not follow the config's parametrisation, which scales groups."""
    name = config.parametrization["type"]
    if not optim.startswith("adamw_torch"):
        raise ConfigError(
            f"training.optim: {optim!r} does not follow parametrization {name}, whose factors are AdamW's; use "
            "adamw_torch"
        )
    if zero_redundancy:
        raise ConfigError(f"training.zero_redundancy: not supported with parametrization {name}; use false")
