"""Weight initialisation beyond transformers' own rule (Linear, Conv and Embedding N(0, initializer_range), biases
0, norms 1).

Everything goes through `transformers.initialization`, whose functions leave loaded parameters alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ..layers.contract import Part
from ..layers.ffns.ffn import FeedForward
from ..layers.initial import residual_branches
from ..layers.mixers.base import Mixer, SharedParameters
from .configuration import ArchConfig

# The projections that write to the residual stream carry these names in every mixer and FFN.
RESIDUAL_PROJECTIONS = ("o_proj", "down_proj", "out_proj")


def init_hidden_matrix(module: nn.Linear, config: ArchConfig) -> None:
    """The initial standard deviation that the parametrisation gives a Linear layer other than the head. What a part
    initialises by itself stays as the part says."""
    parametrization, given = config.parametrization_spec
    factor = parametrization.hidden_std(config, given)
    if factor != 1:
        init.normal_(module.weight, mean=0.0, std=config.initializer_range * factor)


def init_arch_weights(module: nn.Module, config: ArchConfig) -> None:
    """Initialise what `module` adds to the general rule: a mixer's or FFN's own parameters, and GPT-2's scaling of the
    residual projections that have no rule of their own."""
    if isinstance(module, (Mixer, FeedForward, SharedParameters, Part)):
        scaled = list(residual_weights(module)) if config.rescale_residual_init else []
        before = [weight.clone() for weight in scaled]
        module.init_weights()
        for weight, general in zip(scaled, before, strict=True):
            if weight.is_meta or torch.equal(weight, general):  # else `init_weights` has a rule of its own for it
                init.normal_(weight, mean=0.0, std=config.initializer_range / math.sqrt(residual_branches(config)))


def residual_weights(module: nn.Module) -> Iterator[Tensor]:
    """The weights of a mixer's or FFN's projections to the residual stream."""
    if isinstance(module, (Mixer, FeedForward)):
        for name in RESIDUAL_PROJECTIONS:
            projection = getattr(module, name, None)
            if isinstance(projection, nn.Linear):
                yield projection.weight
