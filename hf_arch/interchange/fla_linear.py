"""flash-linear-attention (FLA) 0.6, the gated linear-attention families: linear_attn, hgrn, hgrn2, gsa, abc, rwkv6."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ..layers.mixers.hgrn2 import GatedStateExpansion
from ..layers.mixers.rwkv6 import STREAMS
from ..models.configuration import ArchConfig
from .base import FOREIGN
from .fla import (
    ACTIVATIONS,
    AFFINE,
    EXPAND,
    OUTPUT_NORM,
    PROJECTIONS,
    SHORT_CONV,
    SHORT_CONVS,
    FLAConverter,
    layer_norm,
)
from .reader import ConfigReader
from .rules import Rule, shared
from .table import Entry, Layer, Modules, Option, Tensors, Unused, as_bool, under


def _bounded(layer: Layer) -> bool:
    """Whether a layer reads them: the bound of layer 0 is none, unless it is the only one."""
    specs = layer.config.mixer_specs
    return any(getattr(options, "use_lower_bound", False) for _, options in (specs[1:] or specs))


class _FLABounded(FLAConverter):
    """Gates with a lower bound that is learned for all layers together."""

    grouped_heads = False
    model_tensors = (Tensors("model.shared.0.logits", "model.lower_bounds", when=_bounded),)

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        # Where attention is in every layer, theirs would still divide the width and make the bounds.
        return {"expand_ratio": None, "use_lower_bound": False, **super().config_to_theirs(config)}


def _heads_by_ratio(given: int | None, reader: ConfigReader) -> int | None:
    ratio = reader.take("expand_ratio", 128)
    return given if ratio is None else reader.need("hidden_size") // ratio


@FOREIGN.register("hgrn2")
class FLAHGRN2(_FLABounded):
    """FLA's HGRN2; its `expand_ratio` decides the number of heads, and the output norm ignores `norm_eps`."""

    architecture, mixer = "hgrn2", "hgrn2"
    heads = Option("num_heads", "num_attention_heads", 4, read=_heads_by_ratio)
    mixer_options = (
        Option("num_heads", None, write=lambda layer: _sizes(layer).num_heads),
        Option("expand_ratio", default=128, write=lambda layer: _sizes(layer).head_k_dim),
        *SHORT_CONV,
        Option("use_lower_bound", default=True),
        AFFINE,
    )
    mixer_tensors = (
        Modules("q_proj k_proj v_proj o_proj", "q_proj f_proj i_proj o_proj"),
        Modules("q_conv k_conv v_conv", "q_conv1d f_conv1d i_conv1d", when="use_short_conv"),
        OUTPUT_NORM,
    )


def _sizes(layer: Layer) -> Any:
    return GatedStateExpansion.head_sizes(layer.config, layer.mixer)


@FOREIGN.register("hgrn")
class FLAHGRN(_FLABounded):
    """FLA's HGRN."""

    architecture, mixer = "hgrn", "hgrn"
    mixer_options = (
        Option("expand_ratio", default=1),
        *SHORT_CONV,
        Option("use_lower_bound", default=True),
        AFFINE,
    )
    mixer_tensors = (
        Modules("i_proj f_proj g_proj o_proj"),
        Modules("i_conv f_conv", "i_conv1d f_conv1d", when="use_short_conv"),
        OUTPUT_NORM,
    )


def channel_mix(kind: str, default_ratio: float) -> tuple[Entry, ...]:
    """The options of RWKV's blocks, whose feed-forward is `kind`."""

    def width(given: int | None, reader: ConfigReader) -> int:
        return given or 32 * -(-int(reader.need("hidden_size") * reader.given("hidden_ratio", default_ratio)) // 32)

    return (
        Unused("hidden_ratio"),
        Option(
            "norm_bias",
            "norm",
            True,
            read=lambda bias, _: "layernorm" if bias else "layernorm_nobias",
            write=layer_norm,
        ),
        Option("norm_eps", default=1e-5),
        Option("norm_first", "embedding_norm", True, read=as_bool),
        Option("intermediate_size", read=width, write=lambda layer: layer.ffn_width),
        Option(
            "hidden_act",
            "ffn",
            "sqrelu",
            allowed=ACTIVATIONS,
            read=lambda act, _: {"type": kind, "hidden_act": act},
            write=lambda layer: layer.activation,
        ),
    )


@FOREIGN.register("rwkv6")
class FLARWKV6(FLAConverter):
    """FLA's RWKV6: LayerNorms, one more after the embeddings, a channel mix."""

    architecture, mixer = "rwkv6", "rwkv6"
    attention_residuals = False
    grouped_heads = False
    block_options = channel_mix("channel_mix", 3.5)
    model_tensors = (
        Modules(
            "model.embedding_norm",
            "model.layers.0.pre_norm",
            when=lambda layer: layer.config.embedding_norm,
            bias=layer_norm,
        ),
    )
    layer_tensors = (
        Modules("mixer_norm ffn_norm", "attn_norm ffn_norm", bias=layer_norm),
        *under(
            "ffn",
            "ffn",
            Tensors("key_mix receptance_mix", "key.mu receptance.mu"),
            Modules("key_proj down_proj receptance_proj", "key.linear value receptance.linear"),
        ),
    )
    mixer_options: ClassVar[tuple[Entry, ...]] = (
        Option("expand_k", default=0.5),
        Option("expand_v", default=1.0),
        Option("proj_low_rank_dim", "shift_rank", 32),
        Option("gate_low_rank_dim", "decay_rank", 64),
    )
    mixer_tensors: ClassVar[tuple[Tensors, ...]] = (
        Modules("q_proj k_proj v_proj g_proj", "r_proj.linear k_proj.linear v_proj.linear g_proj.linear"),
        Modules("o_proj"),
        Modules("o_norm", "g_norm", bias=True),
        Tensors("bonus shift_mix shift_bias", "bonus x_proj.0.mu x_bias"),
        Modules("shift_down decay_down", "x_proj.0.linear w_proj.linear.lora.0"),
        Modules("decay_up", "w_proj.linear.lora.2", bias=True),
        Tensors(
            "shift_up", "x_proj.2.weight", layout=lambda _, ours, theirs: Rule(ours, theirs, _by_stream, _by_width)
        ),
    )


def _by_stream(tensors: list[Tensor]) -> list[Tensor]:
    """[D, 5 R] -> [5, R, D]."""
    return [tensor.unflatten(1, (len(STREAMS), -1)).permute(1, 2, 0).contiguous() for tensor in tensors]


def _by_width(tensors: list[Tensor]) -> list[Tensor]:
    """[5, R, D] -> [D, 5 R]."""
    return [tensor.permute(2, 0, 1).flatten(1).contiguous() for tensor in tensors]


# Feature maps with parameters, by their names.
_MAPS = {
    "hedgehog": ("layer.weight", "layer.bias"),
    "t2r": ("layer.weight",),
    "elementwise_product": ("layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias"),
}


def _feature_maps(kind: str, name: str) -> tuple[Tensors, ...]:
    """A parameter of the maps of queries and keys, which are one where they are tied."""
    ours, theirs = f"q_map.{name} k_map.{name}", f"feature_map_q.{name} feature_map_k.{name}"

    def tied(layer: Layer) -> bool:
        return layer.mixer.feature_map == kind and layer.mixer.tie_feature_map

    def apart(layer: Layer) -> bool:
        return layer.mixer.feature_map == kind and not layer.mixer.tie_feature_map

    return (
        Tensors(ours, theirs, when=apart),
        Tensors(ours.split()[0], theirs, when=tied, layout=lambda _, one, names: shared(one[0], *names)),
    )


def _tie(tied: Any, reader: ConfigReader) -> bool:
    return bool(tied) and reader.take("feature_map", "elementwise_product") in _MAPS


@FOREIGN.register("linear_attn")
class FLALinearAttention(FLAConverter):
    """FLA's linear attention; a tied feature map has two names there, and a file holds it under one or both."""

    architecture, mixer = "linear_attn", "linear_attn"
    mixer_options = (
        *EXPAND,
        Option("feature_map", default="elementwise_product", allowed=(*_MAPS, "dpfp", "elu", "relu", "identity")),
        Option("tie_feature_map_qk", "tie_feature_map", False, read=_tie),
        Option("norm_q", default=False),
        Option("norm_k", default=False),
        Option("norm_feature_map", "normalize", False),
        AFFINE,
    )
    mixer_tensors = (
        PROJECTIONS,
        *(entry for kind, names in _MAPS.items() for name in names for entry in _feature_maps(kind, name)),
        Modules("o_norm", "norm", when="output_norm_affine"),
    )


def _slots_and_sizes(default_k: float) -> tuple[Entry, ...]:
    """`num_slots`, None of which means the key dim of a head, and the widths, which have had another spelling."""

    def slots(given: int | None, reader: ConfigReader) -> int:
        keys = reader.need("hidden_size") * reader.given("expand_k", reader.given("exapnd_k", default_k))
        return round(keys) // reader.take("num_heads", 4) if given is None else given

    return (
        Option("expand_k", default=default_k, older=("exapnd_k",)),
        Option("expand_v", default=1.0, older=("exapnd_v",)),
        Option("num_slots", default=64, read=slots),
        *SHORT_CONV,
        AFFINE,
    )


@FOREIGN.register("gsa")
class FLAGSA(FLAConverter):
    """FLA's GSA; its output norm ignores `norm_eps`, and neither output gate nor clamps exist there."""

    architecture, mixer = "gsa", "gsa"
    mixer_options = (
        Unused("use_output_gate use_norm clamp_min clamp_max gate_fn"),
        *_slots_and_sizes(1.0),
        Option(
            "feature_map",
            default="swish",
            allowed={"swish": "silu", "silu": "silu", "relu": "relu", "t2r": "t2r"},
        ),
        Option("gate_logit_normalizer", default=8),
    )
    mixer_tensors = (
        PROJECTIONS,
        Modules("f_proj"),
        Modules("feature_map.layer", when=lambda layer: layer.mixer.feature_map == "t2r"),
        SHORT_CONVS,
        OUTPUT_NORM,
    )


@FOREIGN.register("abc")
class FLAABC(FLAConverter):
    """FLA's ABC."""

    architecture, mixer = "abc", "abc"
    grouped_heads = False
    mixer_options = (
        Unused("gate_low_rank_dim"),
        *_slots_and_sizes(0.5),
        Option("use_rope", default=True),
        Option("clamp_min", default=-32),
        Option("clamp_max", default=32),
    )
    mixer_tensors = (PROJECTIONS, Modules("s_proj g_proj"), SHORT_CONVS, OUTPUT_NORM)
