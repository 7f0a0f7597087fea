"""flash-linear-attention (FLA) 0.6, families that are tables of option and tensor names: lightnet.

An option is a line (our name, theirs, their default), a tensor one (our name, theirs).
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..core.errors import ConfigError
from ..layers.mixers.base import divide
from ..layers.mixers.lightnet import LightNet
from ..models.configuration import ArchConfig
from .base import FOREIGN, Rule, same
from .fla import FLAConverter
from .reader import ConfigReader


class FLATable(FLAConverter):
    """A family of std blocks whose mixer's options go over one by one."""

    grouped_heads = False
    options: ClassVar[tuple[tuple[str, str, Any], ...]] = ()
    """(our name, their name, their default)."""

    def tensors(self, options: Any) -> dict[str, str]:
        """Their name of each tensor of the mixer by ours."""
        raise NotImplementedError

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        return {ours: reader.take(theirs, default) for ours, theirs, default in self.options}

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        return {theirs: getattr(options, ours) for ours, theirs, _ in self.options}

    def mixer_rules(
        self, config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str
    ) -> list[Rule]:
        return [same(f"{ours}.{own}", f"{theirs}.{their}") for own, their in self.tensors(options).items()]


def alike(*names: str) -> dict[str, str]:
    """Tensors of one name on both sides."""
    return {name: name for name in names}


def weights(*names: str) -> dict[str, str]:
    """`alike`, the weights of modules."""
    return alike(*(f"{name}.weight" for name in names))


def short_convs(options: Any, names: str = "qkv") -> dict[str, str]:
    """The short convolutions where there are any."""
    has_them = getattr(options, "use_short_conv", True)
    return {f"{name}_conv.weight": f"{name}_conv1d.weight" for name in names} if has_them else {}


@FOREIGN.register("lightnet")
class FLALightNet(FLATable):
    """FLA's LightNet; `num_heads` or `expand_ratio` decides the other, and the output norm ignores `norm_eps`."""

    architecture, mixer = "lightnet", "lightnet"
    defaults: ClassVar[dict[str, Any]] = {"expand_ratio": 128, "num_heads": None}
    options = (
        ("expand_ratio", "expand_ratio", 128),
        ("use_short_conv", "use_short_conv", False),
        ("conv_size", "conv_size", 4),
        ("gate_low_rank_dim", "gate_low_rank_dim", 128),
        ("output_norm_affine", "elementwise_affine", True),
    )

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        heads, ratio = reader.take("num_heads"), reader.take("expand_ratio", 128)
        if heads is None and ratio is None:
            raise ConfigError("config.num_heads: null beside expand_ratio null is not allowed; use an integer >= 1")
        values = super().config_to_ours(reader)
        if heads is None:
            heads = divide(values["hidden_size"], ratio, "config.expand_ratio", "hidden_size")
            values.update(num_attention_heads=heads, num_key_value_heads=heads)
        return values

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        sizes = LightNet.head_sizes(config, options)
        return {
            **super().mixer_to_theirs(config, options),
            "num_heads": sizes.num_heads,
            "expand_ratio": sizes.head_k_dim,
        }

    def tensors(self, options: Any) -> dict[str, str]:
        return {
            **weights("q_proj", "k_proj", "v_proj", "o_proj", "g_proj.0", "g_proj.1"),
            **short_convs(options),
            **({"o_norm.weight": "g_norm.weight"} if options.output_norm_affine else {}),
        }
