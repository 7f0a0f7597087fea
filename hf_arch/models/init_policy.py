"""Initial values of one's own, from a plugin file: a rule that is asked for every parameter of a model.

    @INITS.register("orthogonal")
    class Orthogonal(InitPolicy):
        def init_parameter(self, parameter, role, name):
            if role == "matrix":
                nn.init.orthogonal_(parameter)

`model.init: orthogonal` names it, `model.init: {type: orthogonal, gain: 0.5}` sets its options. It is asked after every
other rule, and what it leaves alone stays as those have it. Draws are named: what it draws for a parameter depends on
the seed and on that parameter's name alone. Parameters that were loaded are never asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.options import Options
from ..core.registry import INITS, plugin_error
from ..layers.initial import residual_branches
from .initialization import residual_weights


class InitPolicy:
    """Base of every one. `self.options` are its parsed options, `self.config` is the model's config."""

    Options: ClassVar[type[Options]] = Options
    label: ClassVar[str] = ""
    """What descriptions call it; its registered name where empty."""
    follows_parametrization: ClassVar[bool] = False
    """Whether its values are right at every size under muP and CompleteP; refused with them otherwise."""
    of_components: ClassVar[bool] = False

    def __init__(self, config: Any, options: Any) -> None:
        self.config, self.options = config, options

    @classmethod
    def validate(cls, config: Any, options: Any) -> None:
        """Raise a ConfigError where the options and the config do not fit together."""

    def init_parameter(self, parameter: Tensor, role: str, name: str) -> None:
        """Sets the first values of a parameter in place, or leaves them as they are.

        Args:
            parameter: without gradient, as the other rules have filled it.
            role: `matrix`, the weight of a linear map inside the layers; `embedding`; `head`; `vector`, one dimension
                (norms, biases); `other` (convolutions, and what a mixer makes decays and gates of).
            name: as in `named_parameters` of the base model, e.g. `layers.0.mixer.q_proj.weight`.

        With `rescale_residual_init`, what it sets of the projections to the residual stream is divided afterwards.
        """
        raise NotImplementedError(f"{type(self).__name__}.init_parameter")


class _OfComponents(InitPolicy):
    """A source of initial values that mixers and feed-forwards know by themselves (`hf_arch.layers.initial`)."""

    of_components = True


for _source in ("official", "fla", "transformers"):
    INITS.register(_source)(type(f"Init_{_source}", (_OfComponents,), {"__module__": __name__}))


@INITS.register("yoco")
class YocoInit(InitPolicy):
    """flash-linear-attention's for YOCO: embeddings N(0, 1 / hidden_size), and feed-forwards, shared keys and values
    and the attention to them uniform in +-1/sqrt(fan_in). Retention has its own rule with every policy."""

    def init_parameter(self, parameter: Tensor, role: str, name: str) -> None:
        if role == "embedding":
            nn.init.normal_(parameter, std=self.config.hidden_size**-0.5)
            padding = self.config.pad_token_id
            if self.config.frozen_pad_embedding and padding is not None and name.startswith("embed_tokens."):
                parameter[padding].zero_()
        elif role == "matrix" and self._is_ours(name):
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))

    def _is_ours(self, name: str) -> bool:
        _, index, part, *_ = name.split(".")
        mixer, _ = self.config.mixer_specs[int(index)]
        return part == "ffn" or (part == "mixer" and mixer.__module__.endswith(".shared_kv"))


def pending_parameters(model: Any) -> list[tuple[str, nn.Parameter, str]]:
    """(name, parameter, role) of what the next initialisation will fill: not what was loaded or is filled already."""
    found: list[tuple[str, nn.Parameter, str]] = []
    seen: set[int] = set()
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for prefix, module in model.named_modules():
        done = getattr(module, "_is_hf_initialized", False)
        for name, parameter in module.named_parameters(recurse=False):
            loaded = done or getattr(parameter, "_is_hf_initialized", False) or parameter.is_meta
            if not loaded and id(parameter) not in seen:
                seen.add(id(parameter))
                full = f"{prefix}.{name}" if prefix else name
                found.append((full, parameter, _role(module, parameter, full, head)))
    return found


def _role(module: nn.Module, parameter: Tensor, name: str, head: nn.Module | None) -> str:
    if parameter.ndim < 2:
        return "vector"
    if module is head:
        return "head"
    if isinstance(module, nn.Embedding):
        return "embedding"
    in_layer = ".layers." in f".{name}"
    return "matrix" if isinstance(module, nn.Linear) and in_layer else "other"


@torch.no_grad()
def apply_policy(
    policy: InitPolicy,
    model: nn.Module,
    parameters: list[tuple[str, nn.Parameter, str]],
    prefix: str,
    enter: Callable[[str], object],
) -> None:
    """Asks `policy` for these parameters; `enter` is called with each name before it draws.

    Raises `ConfigError` of one line, which names the plugin's line, where it raises an error, returns a value, changes
    a shape, or leaves a number that is not finite.
    """
    projections = {id(weight) for weight in _projections(model)} if policy.config.rescale_residual_init else set()
    factor = 1 / math.sqrt(residual_branches(policy.config)) if projections else 1.0
    for full, parameter, role in parameters:
        name = full.removeprefix(prefix)
        where = f"init: {_type(policy)!r}: {name}"
        shape, before = parameter.shape, parameter.clone() if id(parameter) in projections else None
        enter(name)
        try:
            returned = policy.init_parameter(parameter, role, name)  # type: ignore[func-returns-value]
        except ConfigError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise ConfigError(f"{where}: {plugin_error(error)}") from error
        if returned is not None:
            raise ConfigError(
                f"{where}: init_parameter returned {type(returned).__name__}; change the parameter in place"
            )
        if parameter.shape != shape:
            raise ConfigError(f"{where}: has the shape {list(parameter.shape)} now; expected {list(shape)}")
        if before is not None and not torch.equal(before, parameter):
            parameter.mul_(factor)
        if not bool(torch.isfinite(parameter).all()):
            raise ConfigError(f"{where}: contains numbers that are not finite")


def _projections(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        yield from residual_weights(module)


def _type(policy: InitPolicy) -> str:
    return next((name for name, entry in INITS.items() if entry is type(policy)), type(policy).__name__)
