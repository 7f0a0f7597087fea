"""Weight initialisation beyond transformers' own rule (Linear, Conv and Embedding N(0, initializer_range), biases
0, norms 1).

Everything goes through `transformers.initialization`, whose functions leave loaded parameters alone.
"""

from __future__ import annotations

import math

from torch import nn
from transformers import initialization as init

from ..layers.contract import Part
from ..layers.ffns.ffn import FeedForward
from ..layers.mixers.base import Mixer, SharedParameters
from .block import DecoderLayer
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
    """Initialise what `module` adds to the general rule: a mixer's or FFN's own parameters, GPT-2's residual
    scaling."""
    if isinstance(module, (Mixer, FeedForward, SharedParameters, Part)):
        module.init_weights()
    if config.rescale_residual_init and isinstance(module, DecoderLayer):
        branches = 2 * config.num_hidden_layers
        for branch in (module.mixer, module.ffn):
            for name in RESIDUAL_PROJECTIONS:
                projection = getattr(branch, name, None)
                if isinstance(projection, nn.Linear):
                    init.normal_(projection.weight, mean=0.0, std=config.initializer_range / math.sqrt(branches))
