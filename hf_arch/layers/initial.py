"""Policies of initialisation: a component says which sources' initial values it knows, and `config.init` chooses.

`official` is the code that was published with an architecture, `fla` flash-linear-attention, `transformers` that
library. They differ in scale by up to seven times, which alone decides comparisons of small models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from transformers import initialization as init

FLA = {"fla": "flash-linear-attention's: matrices and convolutions N(0, `initializer_range`) but where it has a rule"}
TRANSFORMERS = {"transformers": "transformers': matrices and embeddings N(0, `initializer_range`)"}


class InitPolicies:
    """A component (mixer, feed-forward) whose initial values may follow several sources."""

    inits: ClassVar[Mapping[str, str]] = {}
    """Policies that it knows, the default first, each with what it says."""
    config: Any

    @property
    def init_policy(self) -> str:
        """Whose initial values this layer takes: the config's choice where it knows that, else its default."""
        chosen = self.config.init
        return chosen if isinstance(chosen, str) and chosen in self.inits else next(iter(self.inits), "")


def init_as_torch(module: nn.Linear | nn.Conv1d, scale: float = 1.0) -> None:
    """torch's own rule for Linear and Conv, uniform in +-1/sqrt(fan_in), times `scale`; the bias of a Conv as well."""
    fan_in = module.weight[0].numel()
    bound = scale * fan_in**-0.5
    init.uniform_(module.weight, -bound, bound)
    if module.bias is not None and isinstance(module, nn.Conv1d):
        init.uniform_(module.bias, -bound, bound)


def residual_branches(config: Any) -> int:
    """Sublayers that write to the residual stream: a mixer each layer, and a feed-forward where it has one."""
    return len(config.mixer_specs) + sum(not ffn.absent for ffn, _ in config.ffn_specs)
