"""Muon for the matrices of the blocks, AdamW for every other parameter, as one optimiser.

Muon (Jordan et al. 2024) steps along the orthogonalised momentum of a matrix: with B its momentum and B = U S V^T, the
step is lr c U V^T, found by a few Newton-Schulz iterations (`torch.optim.Muon`). With c = 0.2 sqrt(max(rows, columns))
(Liu et al. 2025, arXiv 2502.16982, "match_rms_adamw") its root mean square is that of an AdamW step, so one learning
rate, one weight decay and one schedule serve both parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from hf_arch.core.errors import ConfigError, choice_error, unknown_key_error

# Options that `training.optim_args` may set, with their defaults.
DEFAULTS: dict[str, Any] = {"momentum": 0.95, "nesterov": True, "ns_steps": 5, "adjust_lr_fn": "match_rms_adamw"}
ADJUSTMENTS = ("match_rms_adamw", "original")


class MuonWithAdamW(torch.optim.Optimizer):
    """One list of parameter groups and one state over `torch.optim.Muon` and `torch.optim.AdamW`.

    Args:
        matrices: parameters with two dimensions, for Muon.
        others: parameter groups with a `weight_decay` each, for AdamW.
        lr, weight_decay: of both parts (of the matrices).
        betas, eps: of AdamW.
        muon: options of `torch.optim.Muon`.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        muon: dict[str, Any],
    ) -> None:
        self._muon = torch.optim.Muon(list(matrices), lr=lr, weight_decay=weight_decay, **muon)
        self._adamw = torch.optim.AdamW(list(others), lr=lr, betas=betas, eps=eps)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Both parts take their step; the loss of `closure`, where there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Shared anew each time: loading a state replaces groups and state of this optimiser alone.
        self._muon.param_groups = [group for group in self.param_groups if "ns_steps" in group]
        self._adamw.param_groups = [group for group in self.param_groups if "ns_steps" not in group]
        for part in (self._muon, self._adamw):
            part.state = self.state
            part.step()
        return loss


def muon_options(optim_args: str | None) -> dict[str, Any]:
    """`training.optim_args` ("momentum=0.9,ns_steps=6") over the defaults; `ConfigError` for what Muon has not."""
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"training.optim: 'muon' needs torch 2.9 or newer; this is torch {torch.__version__}")
    options = dict(DEFAULTS)
    for entry in (optim_args or "").replace(" ", "").split(","):
        if not entry:
            continue
        key, _, value = entry.partition("=")
        if key not in DEFAULTS:
            raise unknown_key_error("training.optim_args", key, DEFAULTS)
        if key == "adjust_lr_fn":
            if value not in ADJUSTMENTS:
                raise choice_error("training.optim_args.adjust_lr_fn", value, ADJUSTMENTS)
            options[key] = value
        elif key == "nesterov":
            if value.lower() not in ("true", "false"):
                raise choice_error("training.optim_args.nesterov", value, ("true", "false"))
            options[key] = value.lower() == "true"
        else:
            try:
                options[key] = type(DEFAULTS[key])(value)
            except ValueError:
                kind = type(DEFAULTS[key]).__name__
                raise ConfigError(f"training.optim_args.{key}: expected a number ({kind}), got {value!r}") from None
    return options


def muon_parameter_names(model: PreTrainedModel) -> list[str]:
    """Weights of the linear maps inside the blocks. Not the head, nor a map that carries a parameter which its mixer
    exempts from weight decay, such as Mamba's `dt_proj`: what it makes is no activation but a step size or a decay.
    """
    special = {
        f"{prefix}.{name}".rpartition(".")[0]
        for prefix, module in model.named_modules()
        for name in getattr(module, "no_weight_decay", ())
        if "." in name
    }
    head = model.get_output_embeddings()
    return [
        f"{prefix}.weight"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and prefix not in special
    ]


def build_muon(
    model: PreTrainedModel, args: TrainingArguments, decayed: Iterable[str], muon: dict[str, Any]
) -> MuonWithAdamW:
    """The optimiser over the trainable parameters of `model`; of what AdamW gets, the names in `decayed` decay."""
    names, decayed = set(muon_parameter_names(model)), set(decayed)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    rest = {name: parameter for name, parameter in trainable.items() if name not in names}
    groups = [
        {"params": [rest[name] for name in rest if name in decayed], "weight_decay": args.weight_decay},
        {"params": [rest[name] for name in rest if name not in decayed], "weight_decay": 0.0},
    ]
    return MuonWithAdamW(
        [parameter for name, parameter in trainable.items() if name in names],
        [group for group in groups if group["params"]],
        lr=args.learning_rate,
        weight_decay=args.weight_decay,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        muon=muon,
    )
