"""Channel mixers, by name: `mlp` (two projections, 4x), `glu` (SwiGLU and kin: Shazeer 2020; 8/3x), `none`.

A feed-forward gets the same context as a mixer (layout, cache), for those that keep a token between steps (RWKV's
channel mix).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import ACTIVATIONS, FFNS
from ..activations import activated, gated
from ..contract import EMPTY_CONTEXT, LayerContext, LayerOutput, check_signature
from ..fp32 import KeepsFp32
from ..initial import InitPolicies
from ..mixers.base import MixerCost
from ..plain_linear import project


@options
class FeedForwardOptions(Options):
    """None takes the config's value (`intermediate_size`, `hidden_act`, `mlp_bias`)."""

    intermediate_size: int | None = None
    hidden_act: str | None = None
    bias: bool | None = None


class FeedForward(InitPolicies, KeepsFp32):
    """Base of every channel mixer; built as `FFNClass(config, options, layer_idx)`."""

    Options: ClassVar[type[Options]] = FeedForwardOptions
    absent: ClassVar[bool] = False
    needs_conv_state: ClassVar[bool] = False
    """Whether it keeps a token shift state in the cache."""
    routed: ClassVar[bool] = False
    """Whether its `forward` gives (output, router logits), of which `routing_losses` makes losses over all layers."""
    label: ClassVar[str] = ""
    config_features: ClassVar[tuple[str, ...]] = ()
    """As Mixer.config_features."""

    def __init__(self, config: Any, options: Any, layer_idx: int):
        super().__init__()
        self.config, self.options, self.layer_idx = config, options, layer_idx

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_signature(cls, "forward")

    @classmethod
    def default_intermediate_size(cls, config: Any) -> int:
        """The width taken where `intermediate_size` is None."""
        return 4 * config.hidden_size

    @classmethod
    def validate(cls, config: Any, options: Any) -> None:
        """Raise a ConfigError where options and sizes do not fit together."""
        ACTIVATIONS.get(getattr(options, "hidden_act", None) or config.hidden_act, "hidden_act")

    @classmethod
    def width(cls, config: Any, options: Any) -> int:
        """The intermediate size: the option's, the config's, or this FFN's own rule."""
        given = getattr(options, "intermediate_size", None)  # `none` has no such option
        return given or config.intermediate_size or cls.default_intermediate_size(config)

    @classmethod
    def hidden_width(cls, config: Any, options: Any) -> int | None:
        """The channels of its projections where `context.at("ffn_hidden", x, ...)` is applied to them, else None: it
        then has no such place."""
        return None

    @classmethod
    def effective(cls, config: Any, options: Any) -> dict[str, Any]:
        """As Mixer.effective."""
        values = {"class": cls.__name__, **asdict(options)}
        for name, resolved in (("hidden_act", config.hidden_act), ("bias", config.mlp_bias)):
            if values.get(name, 0) is None:
                values[name] = resolved
        if "intermediate_size" in values:
            values["intermediate_size"] = cls.width(config, options)
        return values

    @classmethod
    def tensor_parallel(cls, config: Any, options: Any) -> dict[str, str]:
        """As Mixer.tensor_parallel."""
        return {}

    @classmethod
    def expert_parallel(cls, config: Any, options: Any) -> dict[str, str]:
        """How expert parallelism splits its modules, in transformers' words."""
        return {}

    def forward(self, hidden_states: Tensor, context: LayerContext = EMPTY_CONTEXT) -> Tensor | LayerOutput:
        """[B, T, D] -> [B, T, D], alone or in a LayerOutput; `context` comes by keyword."""
        raise NotImplementedError

    @classmethod
    def routing_losses(
        cls,
        layers: Sequence[Any],
        router_logits: Sequence[Tensor],
        mask: Tensor | None,
        weights: Tensor | None = None,
        coefficients: Sequence[float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(balance of the experts, what training adds to the loss); see `MixtureOfExperts`."""
        raise NotImplementedError

    def cost(self, seq_len: int) -> MixerCost:
        """What it costs beyond its Linear layers."""
        return MixerCost()

    def init_weights(self) -> None:
        """As Mixer.init_weights."""


@FFNS.register("none")
class NoFeedForward(FeedForward):
    """A block of the mixer alone (Mamba); the decoder builds nothing for it."""

    absent: ClassVar[bool] = True

    Options = Options
    label = "NoFFN"

    @classmethod
    def validate(cls, config: Any, options: Any) -> None:
        """There is nothing to check."""


@FFNS.register("mlp")
class MLP(FeedForward):
    """down(act(up x))."""

    label = "MLP"
    config_features = ("hidden_act", "mlp_bias")

    def __init__(self, config: Any, options: FeedForwardOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        size, bias = self.width(config, options), config.mlp_bias if options.bias is None else options.bias
        self.up_proj = nn.Linear(config.hidden_size, size, bias=bias)
        self.down_proj = nn.Linear(size, config.hidden_size, bias=bias)
        self.act_fn = ACTIVATIONS.get(options.hidden_act or config.hidden_act, "hidden_act")

    @classmethod
    def hidden_width(cls, config: Any, options: Any) -> int | None:
        return cls.width(config, options)

    @classmethod
    def tensor_parallel(cls, config: Any, options: Any) -> dict[str, str]:
        return {"up_proj": "colwise", "down_proj": "rowwise"}

    def forward(self, hidden_states: Tensor, context: LayerContext = EMPTY_CONTEXT) -> Tensor:
        (up,) = context.at("ffn_hidden", hidden_states, project(self.up_proj, hidden_states, context.row))
        return project(self.down_proj, activated(up, self.act_fn, context.row), context.row)


@options
class GatedOptions(FeedForwardOptions):
    """`gate_multiplier`: a factor of the gate before its activation, `output_multiplier`: of what is written; None = 1
    (Falcon-H1 has both)."""

    gate_multiplier: float | None = None
    output_multiplier: float | None = None


@FFNS.register("glu")
class GatedMLP(FeedForward):
    """down(act(gate x) * up x); SwiGLU with `silu`."""

    Options = GatedOptions
    label = "GLU"
    config_features = ("hidden_act", "mlp_bias")

    def __init__(self, config: Any, options: FeedForwardOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        size, bias = self.width(config, options), config.mlp_bias if options.bias is None else options.bias
        self.gate_multiplier, self.output_multiplier = _multipliers(options)
        self.gate_proj = nn.Linear(config.hidden_size, size, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, size, bias=bias)
        self.down_proj = nn.Linear(size, config.hidden_size, bias=bias)
        self.act_fn = ACTIVATIONS.get(options.hidden_act or config.hidden_act, "hidden_act")

    @classmethod
    def validate(cls, config: Any, options: Any) -> None:
        super().validate(config, options)
        for name in ("gate_multiplier", "output_multiplier"):
            value = getattr(options, name, None)
            if value is not None and not (value != 0 and isfinite(value)):
                raise ConfigError(f"ffn glu: {name} {value} is not allowed; use a number other than 0")

    @classmethod
    def effective(cls, config: Any, options: Any) -> dict[str, Any]:
        gate, output = _multipliers(options)
        return {**super().effective(config, options), "gate_multiplier": gate, "output_multiplier": output}

    @classmethod
    def default_intermediate_size(cls, config: Any) -> int:
        multiple = config.intermediate_multiple_of
        return multiple * -(-int(8 * config.hidden_size / 3) // multiple)

    @classmethod
    def hidden_width(cls, config: Any, options: Any) -> int | None:
        return 2 * cls.width(config, options)

    @classmethod
    def tensor_parallel(cls, config: Any, options: Any) -> dict[str, str]:
        return {"gate_proj": "colwise", "up_proj": "colwise", "down_proj": "rowwise"}

    def forward(self, hidden_states: Tensor, context: LayerContext = EMPTY_CONTEXT) -> Tensor:
        row = context.row
        gate, up = project(self.gate_proj, hidden_states, row), project(self.up_proj, hidden_states, row)
        gate, up = context.at("ffn_hidden", hidden_states, gate, up)
        gate = gate if self.gate_multiplier == 1 else gate * self.gate_multiplier
        out = project(self.down_proj, gated(up, gate, self.act_fn, row), row)
        return out if self.output_multiplier == 1 else out * self.output_multiplier


def _multipliers(options: Any) -> tuple[float, float]:
    """(of the gate, of the output)."""
    # A shared expert, and a plugin's options, may have neither.
    given = (getattr(options, name, None) for name in ("gate_multiplier", "output_multiplier"))
    gate, output = (1.0 if value is None else value for value in given)
    return gate, output
