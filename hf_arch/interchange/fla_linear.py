"""flash-linear-attention (FLA) 0.6, the gated linear-attention families: linear_attn, hgrn, hgrn2, gsa, abc, rwkv6."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..layers.mixers.hgrn2 import GatedStateExpansion
from ..layers.mixers.rwkv6 import STREAMS
from ..models.configuration import ArchConfig
from .base import FOREIGN, Rule, parts, same, shared
from .fla import ACTIVATIONS, THEIR_ACTIVATIONS, FLAConverter, short_conv_rules
from .reader import ConfigReader


@FOREIGN.register("hgrn2")
class FLAHGRN2(FLAConverter):
    """FLA's HGRN2; its `expand_ratio` decides the number of heads, and the output norm ignores `norm_eps`."""

    architecture, mixer = "hgrn2", "hgrn2"
    grouped_heads = False

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        values = super().config_to_ours(reader)
        ratio = reader.take("expand_ratio", 128)
        if ratio is not None:
            heads = values["hidden_size"] // ratio
            values.update(num_attention_heads=heads, num_key_value_heads=heads)
        return values

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        # Where attention is in every layer, theirs would still divide the width and make the bounds.
        return {"expand_ratio": None, "use_lower_bound": False, **super().config_to_theirs(config)}

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        return {
            "expand_ratio": reader.take("expand_ratio", 128),
            "use_short_conv": reader.take("use_short_conv", False),
            "conv_size": reader.take("conv_size", 4),
            "use_lower_bound": reader.take("use_lower_bound", True),
            "output_norm_affine": reader.take("elementwise_affine", True) is not False,
        }

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        sizes = GatedStateExpansion.head_sizes(config, options)
        return {
            "num_heads": sizes.num_heads,
            "expand_ratio": sizes.head_k_dim,
            "use_short_conv": options.use_short_conv,
            "conv_size": options.conv_size,
            "use_lower_bound": options.use_lower_bound,
            "elementwise_affine": options.output_norm_affine,
        }

    def mixer_rules(
        self, config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str
    ) -> list[Rule]:
        names = {"q": "q", "k": "f", "v": "i", "o": "o"}
        rules = [same(f"{ours}.{own}_proj.weight", f"{theirs}.{their}_proj.weight") for own, their in names.items()]
        if options.use_short_conv:
            rules += [
                same(f"{ours}.{own}_conv.weight", f"{theirs}.{names[own]}_conv1d.weight") for own in ("q", "k", "v")
            ]
        if options.output_norm_affine:
            rules += parts(f"{ours}.o_norm", f"{theirs}.g_norm")
        return rules

    def model_rules(self, config: ArchConfig) -> list[Rule]:
        return lower_bound_rules(config)


@FOREIGN.register("hgrn")
class FLAHGRN(FLAConverter):
    """FLA's HGRN."""

    architecture, mixer = "hgrn", "hgrn"
    grouped_heads = False

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        return {"use_lower_bound": False, **super().config_to_theirs(config)}  # as HGRN2's

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        return {
            "expand_ratio": reader.take("expand_ratio", 1),
            "use_short_conv": reader.take("use_short_conv", False),
            "conv_size": reader.take("conv_size", 4),
            "use_lower_bound": reader.take("use_lower_bound", True),
            "output_norm_affine": reader.take("elementwise_affine", True) is not False,
        }

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        names = ("expand_ratio", "use_short_conv", "conv_size", "use_lower_bound")
        return {**{name: getattr(options, name) for name in names}, "elementwise_affine": options.output_norm_affine}

    def mixer_rules(
        self, config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str
    ) -> list[Rule]:
        rules = [rule for name in "ifgo" for rule in parts(f"{ours}.{name}_proj", f"{theirs}.{name}_proj")]
        if options.use_short_conv:
            rules += short_conv_rules(ours, theirs, "if")
        if options.output_norm_affine:
            rules += parts(f"{ours}.o_norm", f"{theirs}.g_norm")
        return rules

    def model_rules(self, config: ArchConfig) -> list[Rule]:
        return lower_bound_rules(config)


def lower_bound_rules(config: ArchConfig) -> list[Rule]:
    """The bounds of all layers' gates."""
    bounded = any(getattr(options, "use_lower_bound", False) for _, options in config.mixer_specs)
    return [same("model.shared.0.logits", "model.lower_bounds")] if bounded else []


@FOREIGN.register("rwkv6")
class FLARWKV6(FLAConverter):
    """FLA's RWKV6: LayerNorms, one more after the embeddings, a channel mix."""

    architecture, mixer, hidden_ratio = "rwkv6", "rwkv6", 3.5
    grouped_heads = False

    def block_to_ours(self, reader: ConfigReader, hidden_size: int) -> dict[str, Any]:
        ratio = reader.take("hidden_ratio", self.hidden_ratio) or self.hidden_ratio
        return {
            "norm": "layernorm" if reader.take("norm_bias", True) else "layernorm_nobias",
            "norm_eps": reader.take("norm_eps", 1e-5),
            "embedding_norm": bool(reader.take("norm_first", True)),
            "intermediate_size": reader.take("intermediate_size") or 32 * -(-int(hidden_size * ratio) // 32),
            "ffn": {
                "type": "channel_mix",
                "hidden_act": ACTIVATIONS[reader.only("hidden_act", ACTIVATIONS, "sqrelu")],
            },
        }

    def block_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        ffn, options = config.ffn_specs[0]
        return {
            "norm_bias": config.norm == "layernorm",
            "norm_eps": config.norm_eps,
            "norm_first": config.embedding_norm,
            "intermediate_size": ffn.width(config, options) if hasattr(ffn, "width") else None,
            "hidden_act": THEIR_ACTIVATIONS.get(getattr(options, "hidden_act", ""), "sqrelu"),
        }

    def norm_names(self, config: ArchConfig) -> tuple[str, ...]:
        return ("weight", "bias") if config.norm == "layernorm" else ("weight",)

    def model_rules(self, config: ArchConfig) -> list[Rule]:
        if not config.embedding_norm:
            return []
        return parts("model.embedding_norm", "model.layers.0.pre_norm", self.norm_names(config))

    def block_rules(self, config: ArchConfig, layer: str) -> list[Rule]:
        names = self.norm_names(config)
        return [
            *parts(f"{layer}.mixer_norm", f"{layer}.attn_norm", names),
            *parts(f"{layer}.ffn_norm", f"{layer}.ffn_norm", names),
            same(f"{layer}.ffn.key_mix", f"{layer}.ffn.key.mu"),
            same(f"{layer}.ffn.key_proj.weight", f"{layer}.ffn.key.linear.weight"),
            same(f"{layer}.ffn.down_proj.weight", f"{layer}.ffn.value.weight"),
            same(f"{layer}.ffn.receptance_mix", f"{layer}.ffn.receptance.mu"),
            same(f"{layer}.ffn.receptance_proj.weight", f"{layer}.ffn.receptance.linear.weight"),
        ]

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        return {
            "expand_k": reader.take("expand_k", 0.5),
            "expand_v": reader.take("expand_v", 1.0),
            "shift_rank": reader.take("proj_low_rank_dim", 32),
            "decay_rank": reader.take("gate_low_rank_dim", 64),
        }

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        return {
            "expand_k": options.expand_k,
            "expand_v": options.expand_v,
            "proj_low_rank_dim": options.shift_rank,
            "gate_low_rank_dim": options.decay_rank,
        }

    def mixer_rules(
        self, config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str
    ) -> list[Rule]:
        streams = {"q_proj": "r_proj", "k_proj": "k_proj", "v_proj": "v_proj", "g_proj": "g_proj"}
        return [
            *(same(f"{ours}.{own}.weight", f"{theirs}.{their}.linear.weight") for own, their in streams.items()),
            same(f"{ours}.o_proj.weight", f"{theirs}.o_proj.weight"),
            same(f"{ours}.bonus", f"{theirs}.bonus"),
            *parts(f"{ours}.o_norm", f"{theirs}.g_norm", ("weight", "bias")),
            same(f"{ours}.shift_mix", f"{theirs}.x_proj.0.mu"),
            same(f"{ours}.shift_down.weight", f"{theirs}.x_proj.0.linear.weight"),
            Rule((f"{ours}.shift_up",), (f"{theirs}.x_proj.2.weight",), _by_stream, _by_width),
            same(f"{ours}.shift_bias", f"{theirs}.x_bias"),
            same(f"{ours}.decay_down.weight", f"{theirs}.w_proj.linear.lora.0.weight"),
            *parts(f"{ours}.decay_up", f"{theirs}.w_proj.linear.lora.2", ("weight", "bias")),
        ]


def _by_stream(tensors: list[Tensor]) -> list[Tensor]:
    """[D, 5 R] -> [5, R, D]."""
    return [tensor.unflatten(1, (len(STREAMS), -1)).permute(1, 2, 0).contiguous() for tensor in tensors]


def _by_width(tensors: list[Tensor]) -> list[Tensor]:
    """[5, R, D] -> [D, 5 R]."""
    return [tensor.permute(2, 0, 1).flatten(1).contiguous() for tensor in tensors]


@FOREIGN.register("linear_attn")
class FLALinearAttention(FLAConverter):
    """FLA's linear attention; a tied feature map has two names there, and a file holds it under one or both."""

    architecture, mixer = "linear_attn", "linear_attn"

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        learned = ("hedgehog", "t2r", "elementwise_product")
        feature_map = reader.only("feature_map", (*learned, "dpfp", "elu", "relu", "identity"), "elementwise_product")
        return {
            "expand_k": reader.take("expand_k", 1.0),
            "expand_v": reader.take("expand_v", 1.0),
            "feature_map": feature_map,
            "tie_feature_map": reader.take("tie_feature_map_qk", False) and feature_map in learned,
            "norm_q": reader.take("norm_q", False),
            "norm_k": reader.take("norm_k", False),
            "normalize": reader.take("norm_feature_map", False),
            "output_norm_affine": reader.take("elementwise_affine", True) is not False,
        }

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        names = ("expand_k", "expand_v", "feature_map", "norm_q", "norm_k")
        return {
            **{name: getattr(options, name) for name in names},
            "tie_feature_map_qk": options.tie_feature_map,
            "norm_feature_map": options.normalize,
            "elementwise_affine": options.output_norm_affine,
        }

    def mixer_rules(
        self, config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str
    ) -> list[Rule]:
        rules = [rule for name in "qkvo" for rule in parts(f"{ours}.{name}_proj", f"{theirs}.{name}_proj")]
        for name in _MAP_PARAMETERS.get(options.feature_map, ()):
            of_q, of_k = f"{theirs}.feature_map_q.{name}", f"{theirs}.feature_map_k.{name}"
            if options.tie_feature_map:
                rules.append(shared(f"{ours}.q_map.{name}", of_q, of_k))
            else:
                rules += [same(f"{ours}.q_map.{name}", of_q), same(f"{ours}.k_map.{name}", of_k)]
        if options.output_norm_affine:
            rules += parts(f"{ours}.o_norm", f"{theirs}.norm")
        return rules


_MAP_PARAMETERS = {
    "hedgehog": ("layer.weight", "layer.bias"),
    "t2r": ("layer.weight",),
    "elementwise_product": ("layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias"),
}


@FOREIGN.register("gsa")
class FLAGSA(FLAConverter):
    """FLA's GSA; its output norm ignores `norm_eps`, and neither output gate nor clamps exist there."""

    architecture, mixer = "gsa", "gsa"

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        reader.dead("use_output_gate", "use_norm", "clamp_min", "clamp_max", "exapnd_k", "exapnd_v", "gate_fn")
        expand_k = reader.take("expand_k", reader.take("exapnd_k", 1.0))
        return {
            "num_slots": _slots(reader, expand_k),
            "expand_k": expand_k,
            "expand_v": reader.take("expand_v", reader.take("exapnd_v", 1.0)),
            "feature_map": _GSA_MAPS[reader.only("feature_map", _GSA_MAPS, "swish")],
            "use_short_conv": reader.take("use_short_conv", False),
            "conv_size": reader.take("conv_size", 4),
            "gate_logit_normalizer": reader.take("gate_logit_normalizer", 8),
            "output_norm_affine": reader.take("elementwise_affine", True) is not False,
        }

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        names = ("num_slots", "expand_k", "expand_v", "use_short_conv", "conv_size", "gate_logit_normalizer")
        return {
            **{name: getattr(options, name) for name in names},
            "feature_map": {"silu": "swish"}.get(options.feature_map, options.feature_map),
            "elementwise_affine": options.output_norm_affine,
        }

    def mixer_rules(
        self, config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str
    ) -> list[Rule]:
        rules = [rule for name in "qkvfo" for rule in parts(f"{ours}.{name}_proj", f"{theirs}.{name}_proj")]
        if options.feature_map == "t2r":
            rules += parts(f"{ours}.feature_map.layer", f"{theirs}.feature_map.layer")
        if options.use_short_conv:
            rules += short_conv_rules(ours, theirs)
        return rules + (parts(f"{ours}.o_norm", f"{theirs}.g_norm") if options.output_norm_affine else [])


def _slots(reader: ConfigReader, expand_k: float) -> int:
    """`num_slots`, None of which means the key dim of a head."""
    slots = reader.take("num_slots", 64)
    return round(reader.config["hidden_size"] * expand_k) // reader.take("num_heads", 4) if slots is None else slots


_GSA_MAPS = {"swish": "silu", "silu": "silu", "relu": "relu", "t2r": "t2r"}


@FOREIGN.register("abc")
class FLAABC(FLAConverter):
    """FLA's ABC."""

    architecture, mixer = "abc", "abc"
    grouped_heads = False

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        reader.dead("gate_low_rank_dim", "exapnd_k", "exapnd_v")
        expand_k = reader.take("expand_k", reader.take("exapnd_k", 0.5))
        return {
            "num_slots": _slots(reader, expand_k),
            "expand_k": expand_k,
            "expand_v": reader.take("expand_v", reader.take("exapnd_v", 1.0)),
            "use_short_conv": reader.take("use_short_conv", False),
            "conv_size": reader.take("conv_size", 4),
            "use_rope": reader.take("use_rope", True),
            "clamp_min": reader.take("clamp_min", -32),
            "clamp_max": reader.take("clamp_max", 32),
            "output_norm_affine": reader.take("elementwise_affine", True) is not False,
        }

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        names = (
            "num_slots",
            "expand_k",
            "expand_v",
            "use_short_conv",
            "conv_size",
            "use_rope",
            "clamp_min",
            "clamp_max",
        )
        return {**{name: getattr(options, name) for name in names}, "elementwise_affine": options.output_norm_affine}

    def mixer_rules(
        self, config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str
    ) -> list[Rule]:
        rules = [rule for name in "qkvsgo" for rule in parts(f"{ours}.{name}_proj", f"{theirs}.{name}_proj")]
        if options.use_short_conv:
            rules += short_conv_rules(ours, theirs)
        return rules + (parts(f"{ours}.o_norm", f"{theirs}.g_norm") if options.output_norm_affine else [])
