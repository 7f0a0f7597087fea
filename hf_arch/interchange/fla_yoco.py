"""FLA's YOCO: self layers of constant state or a window, one builder of shared keys and values, cross layers."""

from __future__ import annotations

from typing import Any

from ..core.errors import ConfigError
from ..core.registry import MIXERS
from ..models.configuration import ArchConfig
from .base import FOREIGN, Converter
from .directions import layers_of, need_layer, options_to_ours, options_to_theirs, tensor_rules
from .fla import (
    ATTENTION,
    ATTENTION_RESIDUALS,
    BLOCK,
    MODEL,
    RESIDUAL_HEAD,
    RESIDUAL_LAYER,
    THETA,
    WINDOW,
    gated_mlp,
    l2warp,
)
from .fla_delta import DECAY_TENSORS, DELTA_TENSORS, SHORT_CONV, grouped_sizes
from .reader import ConfigReader
from .rules import Rule, half_split
from .table import Always, Entry, Layer, Modules, Option, Tensors, Unused, as_float, under

_MODEL: tuple[Entry, ...] = (
    *MODEL,
    *gated_mlp(4, {"swish": "silu", "silu": "silu", "powlu": "powlu"}),
    ATTENTION_RESIDUALS,
    l2warp(),
)
_FREQUENCIES = Option("rope_inv_freq", "rope_frequencies", "fla", allowed={"fla": "default", "yoco": "inclusive"})
_ROTATION: tuple[Entry, ...] = (Option("rope_theta", default=10000.0, null=True, read=as_float), _FREQUENCIES)
_UNUSED = Unused(
    "type mode use_gate expand_v use_short_conv allow_neg_eigval conv_size head_dim num_v_heads window_size qkv_bias "
    "rope_theta rope_inv_freq gate_logit_normalizer"
)
# Of the self layers, by their type: our mixer and its options.
_SELF: dict[str, tuple[str, tuple[Entry, ...]]] = {
    "gated_deltanet": (
        "gated_delta_net",
        (
            *grouped_sizes("gated_delta_net"),
            *SHORT_CONV,
            Option("use_gate", "use_output_gate", True),
            Option("allow_neg_eigval", default=False),
        ),
    ),
    "gated_retention": (
        "gated_retention",
        (
            Option("num_heads", required=True, write=lambda layer: layer.effective["num_heads"]),
            Option("gate_logit_normalizer", default=16, null=True),
            *_ROTATION,
        ),
    ),
    "swa": (
        "attention",
        (
            Option("num_heads", required=True, write=lambda layer: layer.effective["heads"][0]),
            Option(
                "num_v_heads",
                "num_kv_heads",
                lambda reader: reader.need("num_heads"),
                null=True,
                write=lambda layer: layer.effective["heads"][1],
            ),
            Option("qkv_bias", default=False, null=True, write=lambda layer: layer.effective["qkv_bias"]),
            Always("out_bias", False),
            Always("position", "rope"),
            WINDOW,
            THETA,
        ),
    ),
}
_BUILDER: tuple[Entry, ...] = (
    Option(
        "num_kv_heads",
        default=lambda reader: reader.need("num_heads"),
        null=True,
        write=lambda layer: layer.effective["num_kv_heads"],
    ),
    Option("num_heads", "head_dim", read=lambda heads, reader: reader.config["hidden_size"] // heads),
    Option("qkv_bias", "bias", False, null=True),
    *_ROTATION,
)
_CROSS: tuple[Entry, ...] = (
    Option("num_heads", required=True, write=lambda layer: layer.effective["num_heads"]),
    Option("qkv_bias", "bias", False, null=True),
    Option("qk_norm", default=False, null=True),
    Always("qk_norm_eps", 1e-5),
    *_ROTATION,
)


def _rotated(name: str, heads: Any, when: Any = True) -> Tensors:
    return Tensors(name, when=when, layout=lambda layer, ours, theirs: half_split(ours[0], theirs[0], heads(layer)))


def _heads(layer: Layer) -> int:
    return layer.mixer.num_heads or layer.config.num_attention_heads


def _kv_heads(layer: Layer) -> int:
    return layer.effective["num_kv_heads"]


# The tensors of each mixer of ours.
_TENSORS: dict[str, tuple[Tensors, ...]] = {
    "gated_delta_net": (*DELTA_TENSORS, *DECAY_TENSORS),
    "gated_retention": (
        Modules("v_proj g_proj gk_proj o_proj"),
        _rotated("q_proj.weight", _heads),
        _rotated("k_proj.weight", _heads),
    ),
    "attention": ATTENTION,
    "kv_builder": (
        Modules("v_proj", bias="bias"),
        _rotated("k_proj.weight", _kv_heads),
        _rotated("k_proj.bias", _kv_heads, "bias"),
    ),
    "cross_attention": (
        Modules("o_proj"),
        _rotated("q_proj.weight", _heads),
        _rotated("q_proj.bias", _heads, "bias"),
        _rotated("q_norm.weight", lambda _: 1, "qk_norm"),
    ),
}


@FOREIGN.register("yoco")
class FLAYoco(Converter):
    """FLA's YOCO, whose rotation of shared keys turns neighbours."""

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        values = {"architecture": "yoco", **options_to_ours(_MODEL, reader)}
        layers, count = values["num_hidden_layers"], reader.take("num_self_decoder_layers", 10)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= layers:
            raise ConfigError(f"config.num_self_decoder_layers: {count!r} is not allowed; use 1 to {layers}")
        below = _group(reader, "self_decoder_attn", values)
        kind = below.only("type", _SELF, "gated_deltanet")
        mixer, table = _SELF[kind]
        mixers: list[Any] = [{"type": mixer, **options_to_ours((*table, _UNUSED), below)}] * count
        below.finish()
        ffns = ["glu"] * count
        if layers > count:
            above = _group(reader, "cross_decoder_attn", values)
            mixers.append({"type": "kv_builder", **options_to_ours(_BUILDER, above)})
            mixers += [{"type": "cross_attention", **options_to_ours(_CROSS, above)}] * (layers - count)
            above.finish()
            ffns += ["none", *["glu"] * (layers - count)]
        else:
            reader.dead("cross_decoder_attn")
        return {**values, "num_hidden_layers": len(mixers), "mixer": mixers, "ffn": ffns}

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        layers = layers_of(config)
        names = {entry: name for name, entry in MIXERS.items()}
        count = sum(layer.mixer_class.writes for layer in layers)
        theirs = {**options_to_theirs(_MODEL, layers[0], config), "num_hidden_layers": count}
        own = [layer for layer in layers if names[layer.mixer_class] not in ("kv_builder", "cross_attention")]
        kinds = {mixer: kind for kind, (mixer, _) in _SELF.items()}
        if not own or names[own[0].mixer_class] not in kinds:
            raise ConfigError(
                f"mixer: {config.mixer!r} cannot be expressed in a yoco checkpoint; allowed: {', '.join(kinds)}"
            )
        kind = kinds[names[own[0].mixer_class]]
        theirs["num_self_decoder_layers"] = len(own)
        theirs["self_decoder_attn"] = {"type": kind, **options_to_theirs(_SELF[kind][1], own[0], own[0].mixer)}
        if len(own) < len(layers):
            builder = need_layer(config, MIXERS, "kv_builder", self.model_type)
            cross = need_layer(config, MIXERS, "cross_attention", self.model_type)
            theirs["cross_decoder_attn"] = {
                **options_to_theirs(_BUILDER, builder, builder.mixer),
                **options_to_theirs(_CROSS, cross, cross.mixer),
            }
        return theirs

    def rules(self, config: ArchConfig, foreign: dict[str, Any]) -> list[Rule]:
        layers = layers_of(config, foreign)
        names = {entry: name for name, entry in MIXERS.items()}
        around = Modules("model.embed_tokens model.norm lm_head", "model.embeddings model.norm lm_head")
        rules = tensor_rules((around, *under("model", "model", RESIDUAL_HEAD)), layers[0])
        self_layers = foreign.get("num_self_decoder_layers", 10)
        for layer in layers:
            own, ours = names[layer.mixer_class], f"model.layers.{layer.index}"
            tensors = _TENSORS[own]
            if own == "kv_builder":
                residual = Tensors(
                    f"{ours}.stream.mixer.query {ours}.stream.mixer.norm.weight",
                    "model.shared_kv_res_proj.weight model.shared_kv_res_norm.weight",
                    RESIDUAL_LAYER.when,
                )
                table = (Modules("mixer_norm", "kv_norm"), *(t for t in tensors))
                rules += tensor_rules((*_plain(ours, "model.shared_kv_builder", table), residual), layer)
                continue
            upper = layer.index > self_layers
            key = f"model.cross_layers.{layer.index - self_layers - 1}" if upper else f"model.self_layers.{layer.index}"
            rules += tensor_rules(under(ours, key, *BLOCK, RESIDUAL_LAYER, *under("mixer", "attn", *tensors)), layer)
        return rules


def _plain(ours: str, theirs: str, table: tuple[Tensors, ...]) -> tuple[Tensors, ...]:
    """The builder's tensors, which have no prefix of a mixer there."""
    norm, *mixer = table
    return (*under(ours, theirs, norm), *under(f"{ours}.mixer", theirs, *mixer))


def _group(reader: ConfigReader, name: str, values: dict[str, Any]) -> ConfigReader:
    given = reader.take(name)
    if not isinstance(given, dict):
        raise ConfigError(f"config.{name}: {given!r} is not allowed; use a dict of options")
    group = ConfigReader({"model_type": "yoco", **given, "hidden_size": values["hidden_size"]}, f"config.{name}")
    group.dead("hidden_size")
    return group
