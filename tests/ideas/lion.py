"""Lion (Chen et al. 2023, arXiv 2302.06675): step along the sign of an interpolation between momentum and gradient.

u = sign(beta1 m + (1 - beta1) g)      w <- w - lr (u + decay w)      m <- beta2 m + (1 - beta2) g
"""

import torch

from hf_arch.core.options import Options, options
from hf_arch.core.registry import OPTIMIZERS
from hf_arch.optimizers.base import OptimizerBuilder


@options
class LionOptions(Options):
    """`beta1`, `beta2`: as in the formula. `layer_decay`: the learning rate's factor from a layer to the one below."""

    beta1: float = 0.9
    beta2: float = 0.99
    layer_decay: float = 1.0


class LionSteps(torch.optim.Optimizer):
    def __init__(self, groups, lr, beta1, beta2):
        super().__init__(groups, {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                update = torch.lerp(weight.grad, momentum, group["beta1"]).sign()
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
                momentum.lerp_(weight.grad, 1 - group["beta2"])


@OPTIMIZERS.register("idea_lion")
class Lion(OptimizerBuilder):
    Options = LionOptions

    def group(self, parameter, settings):
        found = super().group(parameter, settings)
        below = 0 if parameter.layer is None else parameter.layer
        return {**found, "lr": found["lr"] * self.options.layer_decay**below}

    def build(self, parameters, settings):
        groups = self.groups(parameters, settings)
        return LionSteps(groups, settings.learning_rate, self.options.beta1, self.options.beta2)
