"""flash-linear-attention (FLA) 0.6, families that are tables of option and tensor names: lightnet, mamba3.

An option is a line (our name, theirs, their default), a tensor one (our name, theirs).
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..core.errors import ConfigError
from ..core.registry import MIXERS
from ..layers.mixers.base import divide
from ..layers.mixers.lightnet import LightNet
from ..models.configuration import ArchConfig
from .base import FOREIGN, Converter, Rule, same
from .fla import FLAConverter
from .reader import ConfigReader
from .transformers_dense import take_tokens, their_tokens


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


def short_convs(options: Any) -> dict[str, str]:
    """The short convolutions where there are any."""
    has_them = getattr(options, "use_short_conv", True)
    return {f"{name}_conv.weight": f"{name}_conv1d.weight" for name in "qkv"} if has_them else {}


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
            raise ConfigError("config.num_heads: null and expand_ratio null is not allowed; use an integer >= 1")
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
            **weights("q_proj", "k_proj", "v_proj", "o_proj"),
            **{f"gate_proj.{index}.weight": f"g_proj.{index}.weight" for index in (0, 1)},
            **short_convs(options),
            **({"o_norm.weight": "g_norm.weight"} if options.output_norm_affine else {}),
        }


class FLABackbone(Converter):
    """What FLA's Mamba-like models share: `backbone.*` keys, sizes of heads that follow from `expand`."""

    norm = "norm"
    """Their name of the norm before the mixer."""
    options: ClassVar[tuple[tuple[str, str, Any], ...]]

    def tensors(self, options: Any) -> list[tuple[str, str]]:
        """(our name, their name) of each tensor of the mixer."""
        raise NotImplementedError

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        reader.only("hidden_act", ["silu", "swish"], "silu")
        reader.only("attnres_block_size", [None], None)
        reader.dead("chunk_size", "residual_in_fp32", "criterion")
        reader.dead("fuse_norm", "fuse_cross_entropy", "fuse_linear_cross_entropy")
        hidden = reader.need("hidden_size")
        heads = int(reader.given("expand", 2) * hidden) // reader.given("head_dim", 64)
        reader.only("num_heads", [heads], heads)
        values = {
            "architecture": self.architecture,
            "vocab_size": reader.take("vocab_size", 32000),
            "hidden_size": hidden,
            "num_hidden_layers": reader.take("num_hidden_layers", 48),
            "norm_eps": reader.take("norm_eps", 1e-5),
            "max_logit_penalty": reader.max_logit_penalty(),
            "tie_word_embeddings": reader.take("tie_word_embeddings", False),
            "mixer": {
                "type": self.architecture,
                **{ours: reader.take(theirs, default) for ours, theirs, default in self.options},
            },
        }
        return take_tokens(reader, values)

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        mixer, options = config.mixer_specs[0]
        if mixer is not MIXERS.get(self.architecture):
            raise ConfigError(f"mixer: {config.mixer!r} cannot be expressed in a {self.architecture} checkpoint")
        return {
            **{
                name: getattr(config, name)
                for name in ("vocab_size", "hidden_size", "num_hidden_layers", "norm_eps", "tie_word_embeddings")
            },
            "initializer_range": config.initializer_range,
            "use_l2warp": config.max_logit_penalty != 0,
            "num_heads": int(options.expand * config.hidden_size) // options.head_dim,
            **{theirs: getattr(options, ours) for ours, theirs, _ in self.options},
            **their_tokens(config),
        }

    def rules(self, config: ArchConfig, foreign: dict[str, Any]) -> list[Rule]:
        rules = [
            same("model.embed_tokens.weight", "backbone.embeddings.weight"),
            same("model.norm.weight", "backbone.norm_f.weight"),
            same("lm_head.weight", "lm_head.weight"),
        ]
        for index, (_, options) in enumerate(config.mixer_specs):
            ours, theirs = f"model.layers.{index}", f"backbone.layers.{index}"
            rules.append(same(f"{ours}.mixer_norm.weight", f"{theirs}.{self.norm}.weight"))
            rules += self.ffn_rules(ours, theirs)
            rules += [same(f"{ours}.mixer.{own}", f"{theirs}.mixer.{their}") for own, their in self.tensors(options)]
        return rules

    def ffn_rules(self, ours: str, theirs: str) -> list[Rule]:
        """The tensors of a layer's feed-forward, where it has one."""
        return []


def _linears(options: Any) -> list[tuple[str, str]]:
    kinds = ("weight", "bias") if options.proj_bias else ("weight",)
    return [(f"{name}.{kind}", f"{name}.{kind}") for name in ("in_proj", "out_proj") for kind in kinds]


@FOREIGN.register("mamba3")
class FLAMamba3(FLABackbone):
    """FLA's Mamba-3."""

    architecture = "mamba3"
    options = (
        ("head_dim", "head_dim", 64),
        ("state_size", "state_size", 128),
        ("expand", "expand", 2),
        ("n_groups", "n_groups", 1),
        ("rope_fraction", "rope_fraction", 0.5),
        ("A_floor", "A_floor", 1e-4),
        ("is_mimo", "is_mimo", False),
        ("mimo_rank", "mimo_rank", 4),
        ("use_norm", "is_outproj_norm", False),
        ("proj_bias", "use_bias", False),
        ("dt_min", "dt_min", 1e-3),
        ("dt_max", "dt_max", 1e-1),
        ("dt_init_floor", "dt_init_floor", 1e-4),
        ("rescale_out_proj", "rescale_prenorm_residual", True),
    )

    def tensors(self, options: Any) -> list[tuple[str, str]]:
        names = ["dt_bias", "B_bias", "C_bias", "D", "B_norm.weight", "C_norm.weight"]
        names += ["mimo_x", "mimo_z", "mimo_o"] if options.is_mimo else []
        names += ["norm.weight"] if options.use_norm else []
        return [*_linears(options), *((name, name) for name in names)]
