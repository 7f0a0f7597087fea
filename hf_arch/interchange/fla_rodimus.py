"""FLA's Rodimus: blocks of the mixer alone, or (`rodimus_plus`) with shared-key attention and a feed-forward, which are
two layers here; also with softmax attention in place of the mixer of some blocks."""

from __future__ import annotations

from typing import Any, ClassVar

from ..core.errors import ConfigError
from ..core.registry import MIXERS
from ..layers.streams.two_hop import TwoHopStream
from ..models.configuration import ArchConfig
from .base import FOREIGN, Converter
from .directions import layers_of, need_layer, options_to_ours, options_to_theirs, tensor_rules
from .fla import ATTENTION, GATED_MLP, HYBRID, THETA, WINDOW, gated_mlp, hybrid_layers, l2warp
from .names import COMMON, FUSED, SIZES
from .reader import ConfigReader
from .rules import Rule
from .table import Always, Entry, Layer, Modules, Option, Tensors, Unused, only, under

_MODEL: tuple[Entry, ...] = (
    FUSED,
    # Where sums are kept in fp32 has no effect in fp32; their model fails with the first.
    Unused("attn_mode fuse_swiglu residual_in_fp32 block_residual_in_fp32"),
    Option("vocab_size", default=126464),
    *SIZES,
    Option("max_position_embeddings", default=2048, null=True),
    Option("norm_eps", default=1e-5),
    Option("tie_word_embeddings", default=True),
    only("attnres_block_size", None),
    l2warp(),
    *COMMON,
)
_FEED_FORWARD = tuple(
    entry for entry in gated_mlp(4 / 3, {"swish": "silu", "silu": "silu"}) if getattr(entry, "theirs", "") != "norm_eps"
)
_MIXER: tuple[Entry, ...] = (
    Option("expand_ratio", default=64),
    Option(
        "input_gate_low_rank",
        read=lambda rank, _: None if rank == "auto" else rank,
        write=lambda layer: layer.mixer.input_gate_low_rank or "auto",
    ),
    Option("use_short_conv", default=True),
    Option("conv_size", default=4),
    Option("k_norm_eps", default=1e-12, null=True),
)
_SHARED_KEY: tuple[Entry, ...] = (
    Option("num_heads", required=True, write=lambda layer: layer.effective["heads"][0]),
    Option("qkv_bias", default=False, null=True, write=lambda layer: layer.effective["qkv_bias"]),
    Option("qk_norm", default=False, null=True, write=lambda layer: layer.effective["qk_norm"] is not None),
    Always("qk_norm_eps", 1e-5),
    Always("out_bias", False),
    WINDOW,
    THETA,
)

_GATES = Modules("g_gate_proj tau_gate_proj i_gate_proj.1", bias=True)
_MIXER_TENSORS: tuple[Tensors, ...] = (
    Modules("gate_proj up_proj down_proj q_proj k_proj i_gate_proj.0"),
    _GATES,
    Tensors("residual_weight"),
    Modules("norm", "activation_norm"),
    Modules("conv", "short_conv", when="use_short_conv", bias=True),
)


def _is_plus(config: ArchConfig) -> bool:
    return config.stream_spec[0] is TwoHopStream


@FOREIGN.register("rodimus")
class FLARodimus(Converter):
    """FLA's Rodimus and Rodimus+."""

    defaults: ClassVar[dict[str, Any]] = {"block_type": "rodimus_plus"}

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        kind = reader.only("block_type", ["rodimus", "rodimus_plus"], "rodimus_plus")
        values = {"architecture": kind, **options_to_ours(_MODEL, reader)}
        mixer: Any = {"type": "rodimus", **options_to_ours(_MIXER, reader)}
        blocks, hybrid = values["num_hidden_layers"], reader.take("attn")
        mixers = hybrid_layers(mixer, hybrid, blocks) if hybrid else [mixer] * blocks
        if kind == "rodimus":
            reader.dead("ska_attn", "hidden_ratio", "intermediate_size", "hidden_act")
            values["mixer"] = mixers
        else:
            shared_key = _shared_key(reader)
            values |= {
                **options_to_ours(_FEED_FORWARD, reader),
                "ffn": ["none", "glu"],
                "num_hidden_layers": 2 * blocks,
            }
            values["mixer"] = [layer for mixer in mixers for layer in (mixer, shared_key)]
        if hybrid:
            values["position"] = "rope"
        return values

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        layers, plus = layers_of(config), _is_plus(config)
        layer = need_layer(config, MIXERS, "rodimus", self.model_type)
        theirs = {
            "block_type": "rodimus_plus" if plus else "rodimus",
            "residual_in_fp32": False,
            "block_residual_in_fp32": False,
            **options_to_theirs(_MODEL, layers[0], config),
            **options_to_theirs(_MIXER, layer, layer.mixer),
        }
        if plus:
            shared = need_layer(config, MIXERS, "shared_key", self.model_type)
            theirs |= options_to_theirs(_FEED_FORWARD, shared, config)
            theirs["num_hidden_layers"] = config.num_hidden_layers // 2
            theirs["ska_attn"] = options_to_theirs(_SHARED_KEY, shared, shared.mixer)
        attention = [layer for layer in layers if layer.mixer_class is MIXERS.get("attention")]
        if attention:
            theirs["attn"] = [
                {"layers": [layer.index // (2 if plus else 1)], **options_to_theirs(HYBRID, layer, None)}
                for layer in attention
            ]
        return theirs

    def rules(self, config: ArchConfig, foreign: dict[str, Any]) -> list[Rule]:
        layers, plus = layers_of(config, foreign), _is_plus(config)
        rules = tensor_rules(
            (Modules("model.embed_tokens model.norm lm_head", "model.embeddings model.norm lm_head"),), layers[0]
        )
        for layer in layers:
            block = layer.index // 2 if plus else layer.index
            rules += tensor_rules(under(f"model.layers.{layer.index}", f"model.layers.{block}", *_tables(layer)), layer)
        return rules


def _tables(layer: Layer) -> tuple[Tensors, ...]:
    """The tensors of one of our layers, by their keys in the block that it belongs to."""
    if layer.mixer_class is MIXERS.get("shared_key"):
        return (
            Modules("mixer_norm ffn_norm", "ska_attn_norm mlp_norm"),
            *under("mixer", "ska_attn", *ATTENTION),
            *GATED_MLP,
        )
    attends = layer.mixer_class is MIXERS.get("attention")
    return (Modules("mixer_norm"), *under("mixer", "mixer", *(ATTENTION if attends else _MIXER_TENSORS)))


def _shared_key(reader: ConfigReader) -> dict[str, Any]:
    given = reader.take("ska_attn")
    if not isinstance(given, dict):
        raise ConfigError(f"config.ska_attn: {given!r} is not allowed; use a dict with `num_heads`")
    inner = ConfigReader({"model_type": "rodimus", **given}, "config.ska_attn")
    values = {"type": "shared_key", **options_to_ours(_SHARED_KEY, inner)}
    inner.finish()
    return values
