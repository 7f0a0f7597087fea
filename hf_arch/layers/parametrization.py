"""How initial values, multipliers and learning rates change with width and depth: standard, muP and CompleteP.

A model is tuned at a base width (and depth) and made larger. With m_N = width / base_width, m_L = depth / base_depth:

                                   muP                      CompleteP
    hidden matrices: init std      sigma / sqrt(m_N)        the same
    hidden matrices: lr            lr / m_N                 lr / m_N m_L^(alpha - 1)
    hidden matrices: decay         wd                       wd m_N
    hidden norms and biases: lr    lr                       lr m_L^(alpha - 1)
    residual                       x + f(x)                 x + m_L^-alpha f(x)
    attention scale                sqrt(base_head_dim) / d  the same
    logits                         output / m_N z           the same
    AdamW eps                      eps / m_N                eps / m_N, in the layers also m_L^-alpha

Embeddings, the head and the final norm keep sigma and lr; the embeddings' output is multiplied by `input`. Hidden
matrices are all Linear layers but the head. Everything is 1 at the base size. muP: Yang et al. 2022 (arXiv 2203.03466);
CompleteP: Dey et al. 2025 (arXiv 2505.01618), whose branch the table follows; alpha = 1/2 is depth-muP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.errors import ConfigError
from ..core.options import Options, options
from ..core.registry import PARAMETRIZATIONS


@dataclass(frozen=True)
class Factors:
    """What AdamW's learning rate, decay and epsilon are multiplied by, for one group of parameters."""

    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0


class Parametrization:
    """Base of every one; all its methods are of the class, from the config and its options. Each gives 1 (or the usual
    attention scale) where it changes nothing."""

    Options: ClassVar[type[Options]] = Options
    label: ClassVar[str] = ""
    changes_groups: ClassVar[bool] = False
    """Whether learning rates differ by parameter; optimisers other than AdamW are then refused."""

    @classmethod
    def validate(cls, config: Any, options: Any) -> None:
        """Raise a ConfigError where the options and the config do not fit together."""

    @classmethod
    def input(cls, config: Any, options: Any) -> float:
        """The factor of the embeddings' output."""
        return 1.0

    @classmethod
    def residual(cls, config: Any, options: Any) -> float:
        """The factor of what each sublayer writes."""
        return 1.0

    @classmethod
    def output(cls, config: Any, options: Any) -> float:
        """The factor of the logits."""
        return 1.0

    @classmethod
    def attention_scale(cls, config: Any, options: Any, head_dim: int) -> float:
        """The factor of attention scores."""
        return head_dim**-0.5

    @classmethod
    def hidden_std(cls, config: Any, options: Any) -> float:
        """The factor of the initial standard deviation of hidden matrices."""
        return 1.0

    @classmethod
    def factors(cls, config: Any, options: Any, *, in_layer: bool, hidden_matrix: bool) -> Factors:
        """Of a parameter, by where it is and whether it is the weight of a Linear layer other than the head."""
        return Factors()


@PARAMETRIZATIONS.register("standard")
class StandardParametrization(Parametrization):
    """Nothing changes with size."""


@options
class MupOptions(Options):
    """`base_width`: the hidden_size at which everything is 1. `base_head_dim`: None = the model's own, where heads grow
    in number alone. `input`, `output`: factors to be tuned at the base."""

    base_width: int = 256
    base_head_dim: int | None = None
    input: float = 1.0
    output: float = 1.0


@PARAMETRIZATIONS.register("mup")
class Mup(Parametrization):
    """Maximal update parametrisation: the best learning rate does not move with width."""

    Options = MupOptions
    label = "muP"
    changes_groups = True

    @classmethod
    def validate(cls, config: Any, options: Any) -> None:
        field = config.parametrization["type"]
        for name in ("base_width", "base_head_dim", "base_depth"):
            value = getattr(options, name, None)
            if value is not None and int(value) < 1:
                raise ConfigError(f"parametrization {field} {name}: {value} is not allowed; use an integer >= 1")
        for name in ("input", "output", "alpha"):
            value = float(getattr(options, name, 1.0))
            if not 0 < value < float("inf"):
                raise ConfigError(f"parametrization {field} {name}: {value!r} is not allowed; use a number above 0")
        if config.rescale_residual_init:
            raise ConfigError(
                f"rescale_residual_init: True is not part of parametrization {field}, which sets the initial values of "
                "hidden matrices; use false"
            )

    @classmethod
    def width(cls, config: Any, options: Any) -> float:
        """m_N."""
        return config.hidden_size / options.base_width

    @classmethod
    def input(cls, config: Any, options: Any) -> float:
        return options.input

    @classmethod
    def output(cls, config: Any, options: Any) -> float:
        return options.output / cls.width(config, options)

    @classmethod
    def attention_scale(cls, config: Any, options: Any, head_dim: int) -> float:
        return (options.base_head_dim or head_dim) ** 0.5 / head_dim

    @classmethod
    def hidden_std(cls, config: Any, options: Any) -> float:
        return cls.width(config, options) ** -0.5

    @classmethod
    def factors(cls, config: Any, options: Any, *, in_layer: bool, hidden_matrix: bool) -> Factors:
        width = cls.width(config, options)
        return Factors(lr=1 / width if hidden_matrix else 1.0, eps=1 / width)


@options
class CompletePOptions(MupOptions):
    """`base_depth`: the num_hidden_layers at which everything is 1. `alpha`: of m_L^-alpha; 1/2 is depth-muP."""

    base_depth: int = 6
    alpha: float = 1.0


@PARAMETRIZATIONS.register("completep")
class CompleteP(Mup):
    """muP for depth too: the best learning rate moves with neither width nor depth."""

    Options = CompletePOptions
    label = "CompleteP"

    @classmethod
    def depth(cls, config: Any, options: Any) -> float:
        """m_L, of the layers as often as they run."""
        return len(config.plan) / options.base_depth

    @classmethod
    def residual(cls, config: Any, options: Any) -> float:
        return cls.depth(config, options) ** -options.alpha

    @classmethod
    def factors(cls, config: Any, options: Any, *, in_layer: bool, hidden_matrix: bool) -> Factors:
        width, depth, alpha = cls.width(config, options), cls.depth(config, options), options.alpha
        lr = depth ** (alpha - 1) if in_layer else 1.0
        eps = depth**-alpha if in_layer else 1.0
        if not hidden_matrix:
            return Factors(lr=lr, eps=eps / width)
        return Factors(lr=lr / width, weight_decay=width, eps=eps / width)
