"""flash-linear-attention (FLA) 0.6: transformer, gla, retnet, and the parts that every FLA family shares.

FLA's blocks are `x + attn(RMS(x))`, `x + mlp(RMS(x))`; a hybrid's `attn` (a dict or a list of dicts) puts softmax
attention in some layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..core.errors import ConfigError
from ..core.registry import MIXERS
from ..layers.streams.attention_residual import AttentionResidualStream
from ..models.configuration import ArchConfig
from .base import FOREIGN, Converter
from .directions import layers_of, need_layer, options_to_ours, options_to_theirs, tensor_rules
from .names import ACTIVATIONS as TORCH_ACTIVATIONS
from .names import COMMON, FUSED, SIZES
from .reader import L2WARP_PENALTY, ConfigReader
from .rules import Rule, same
from .table import Always, Entry, Layer, Modules, Option, Tensors, Unused, as_bool, as_float, only, under

ACTIVATIONS = {
    "swish": "silu",
    "silu": "silu",
    "relu": "relu",
    "sqrelu": "relu2",
    "gelu": "gelu_tanh",  # FLA's gelu is the approximation
    "sigmoid": "sigmoid",
    "logsigmoid": "logsigmoid",
}

AFFINE = Option("elementwise_affine", "output_norm_affine", True, allowed={True: True, False: False})
EXPAND = (Option("expand_k", default=1.0), Option("expand_v", default=1.0))
SHORT_CONV = (Option("use_short_conv", default=False), Option("conv_size", default=4))
THETA = Option("rope_theta", default=10000.0, null=True, read=as_float, write=lambda layer: layer.rope_theta)
WINDOW = Option("window_size", "window", 0, null=True, write=lambda layer: layer.effective["window"])

PROJECTIONS = Modules("q_proj k_proj v_proj o_proj")
SHORT_CONVS = Modules("q_conv k_conv v_conv", "q_conv1d k_conv1d v_conv1d", when="use_short_conv")
OUTPUT_NORM = Modules("o_norm", "g_norm", when="output_norm_affine")

MODEL: tuple[Entry, ...] = (
    Unused("attn_mode fuse_swiglu"),
    FUSED,
    Option("vocab_size", default=32000),
    *SIZES,
    Option("max_position_embeddings", default=2048, null=True),
    Option("tie_word_embeddings", default=False),
    *COMMON,
)
_GROUPS = Option("num_kv_heads", "num_key_value_heads", lambda reader: reader.take("num_heads", 4), null=True)


def l2warp(default: bool = False) -> Option:
    """`use_l2warp` as the strength of that penalty, which is fixed there."""
    return Option(
        "use_l2warp",
        "max_logit_penalty",
        default,
        read=lambda value, _: L2WARP_PENALTY if value else 0.0,
        write=lambda layer: layer.config.max_logit_penalty != 0,
    )


def gated_mlp(ratio: float, gates: Mapping[str, str]) -> tuple[Entry, ...]:
    """The options of FLA's usual block."""

    def width(given: int | None, reader: ConfigReader) -> int:
        inner = int(reader.need("hidden_size") * reader.given("hidden_ratio", ratio) * 2 / 3)
        return given or 256 * -(-inner // 256)

    return (
        Unused("hidden_ratio"),
        Option("norm_eps", default=1e-6),
        Always("ffn", "glu"),
        Option("hidden_act", default="swish", allowed=gates, write=lambda layer: layer.activation),
        Option("intermediate_size", read=width, write=lambda layer: layer.ffn_width),
    )


def layer_norm(layer: Layer) -> bool:
    """Whether norms have a bias."""
    return layer.config.norm == "layernorm"


def _attends_depth(layer: Layer) -> bool:
    """Whether the stream is attention over depth."""
    return layer.config.stream_spec[0] is AttentionResidualStream


ATTENTION_RESIDUALS = Option(
    "attnres_block_size",
    "stream",
    read=lambda size, _: "add" if size is None else {"type": "attention_residual", "block_size": size},
    write=lambda layer: layer.config.stream_spec[1].block_size if _attends_depth(layer) else None,
)
RESIDUAL_HEAD = Tensors("stream.head.query stream.head.norm.weight", "res_proj.weight res_norm.weight", _attends_depth)
"""The last mixing, of the model."""
RESIDUAL_LAYER = Tensors(
    "stream.mixer.query stream.mixer.norm.weight stream.ffn.query stream.ffn.norm.weight",
    "attn_res_proj.weight attn_res_norm.weight mlp_res_proj.weight mlp_res_norm.weight",
    _attends_depth,
)
GATED_MLP: tuple[Tensors, ...] = under("ffn", "mlp", Modules("gate_proj up_proj down_proj"))
BLOCK: tuple[Tensors, ...] = (
    Modules("mixer_norm ffn_norm", "attn_norm mlp_norm"),
    *GATED_MLP,
)
ATTENTION: tuple[Tensors, ...] = (
    Modules("o_proj"),
    Modules("q_proj k_proj v_proj", bias=lambda layer: layer.effective["qkv_bias"]),
    Modules("q_norm k_norm", when=lambda layer: layer.effective["qk_norm"] is not None),
)
_AROUND: tuple[Tensors, ...] = (
    Modules("model.embed_tokens", "model.embeddings"),
    Modules("model.norm", bias=layer_norm),
    Modules("lm_head"),
)


class FLAConverter(Converter):
    """What the "std" families share: sizes, the gated MLP, hybrids, the keys of a block."""

    mixer_tensors: ClassVar[tuple[Tensors, ...]] = ()
    """By their keys in `mixer` here, `attn` there."""
    block_options: ClassVar[tuple[Entry, ...]] = ()
    """Norms and feed-forward, where they are not the gated MLP's."""
    layer_tensors = BLOCK
    """Those of a layer besides its mixer."""
    heads: ClassVar[Option] = Option("num_heads", "num_attention_heads", 4)
    hidden_ratio: float = 4
    grouped_heads = True
    """Whether it has `num_kv_heads`."""
    attention_residuals = True
    """Whether `attnres_block_size` makes the stream one of attention over depth."""
    penalises_logits = False
    """`use_l2warp` where a config does not say."""
    gates: ClassVar[dict[str, str]] = {"swish": "silu", "silu": "silu", "powlu": "powlu"}
    """Activations of the gated MLP, and ours."""

    @property
    def _table(self) -> tuple[Entry, ...]:
        groups = (_GROUPS,) if self.grouped_heads else ()
        return (self.heads, *groups, *MODEL, l2warp(self.penalises_logits), *self.model_options)

    @property
    def _block(self) -> tuple[Entry, ...]:
        return self.block_options or gated_mlp(self.hidden_ratio, self.gates)

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        values = {"architecture": self.architecture, **options_to_ours(self._table, reader)}
        values |= options_to_ours(self._block, reader)
        values.setdefault("num_key_value_heads", values["num_attention_heads"])
        if not self.attention_residuals:
            reader.only("attnres_block_size", [None], None)
        else:
            values |= ATTENTION_RESIDUALS.to_ours(reader)
        values["mixer"] = {"type": self.mixer, **options_to_ours(self.mixer_options, reader)}
        hybrid = reader.take("attn")
        if hybrid:
            values["mixer"] = hybrid_layers(values["mixer"], hybrid, values["num_hidden_layers"])
            values["position"] = "rope"
        return values

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        layers = layers_of(config)
        own = [layer for layer in layers if layer.mixer_class is MIXERS.get(self.mixer)]
        if not own and config.model_type != f"hfa_{self.architecture}":
            need_layer(config, MIXERS, self.mixer, self.model_type)
        theirs = options_to_theirs((*self._table, *self._block), layers[0], config)
        if self.attention_residuals:
            theirs |= ATTENTION_RESIDUALS.to_theirs(layers[0], config)
        if own:
            theirs |= options_to_theirs(self.mixer_options, own[0], own[0].mixer)
        attention = [layer for layer in layers if layer.mixer_class.label == ""]
        if self.mixer != "attention" and attention:
            theirs["attn"] = [{"layers": [each.index], **options_to_theirs(HYBRID, each, None)} for each in attention]
        return theirs

    def rules(self, config: ArchConfig, foreign: dict[str, Any]) -> list[Rule]:
        layers = layers_of(config, foreign)
        head = under("model", "model", RESIDUAL_HEAD)
        rules = tensor_rules((*_AROUND, *head, *self.model_tensors), layers[0])
        for layer in layers:
            name = f"model.layers.{layer.index}"  # on both sides
            mixer = ATTENTION if layer.mixer_class.label == "" else self.mixer_tensors
            block = (*self.layer_tensors, RESIDUAL_LAYER, *under("mixer", "attn", *mixer))
            rules += tensor_rules(under(name, name, *block), layer)
        return rules


HYBRID: tuple[Entry, ...] = (
    Option("num_heads", required=True, write=lambda layer: layer.effective["heads"][0]),
    Option(
        "num_kv_heads",
        default=lambda reader: reader.need("num_heads"),
        null=True,
        write=lambda layer: layer.effective["heads"][1],
    ),
    Option("qkv_bias", default=False, read=as_bool, write=lambda layer: layer.effective["qkv_bias"]),
    Always("out_bias", False),
    WINDOW,
    THETA,
)


def hybrid_layers(mixer: dict[str, Any], hybrid: Any, num_layers: int) -> list[dict[str, Any]]:
    """One mixer a layer: softmax attention where a hybrid's `attn` names the layer."""
    mixers = [dict(mixer) for _ in range(num_layers)]
    for group in hybrid if isinstance(hybrid, list) else [hybrid]:
        if not isinstance(group, dict):
            raise ConfigError(f"config.attn: {group!r} is not a group; use a dict with `layers` and `num_heads`")
        reader = ConfigReader({"model_type": "hybrid", **group}, "config.attn")
        attention, layers = {"type": "attention", **options_to_ours(HYBRID, reader)}, reader.need("layers")
        reader.finish()
        for index in layers if isinstance(layers, (list, tuple)) else [layers]:
            if not isinstance(index, int) or not 0 <= index < num_layers:
                raise ConfigError(f"config.attn.layers: {index!r} is not a layer; allowed: 0 to {num_layers - 1}")
            mixers[index] = dict(attention)
    return mixers


def gated_norm() -> Tensors:
    """The norm of the output, whose key depends on whether FLA fuses it with the gate."""

    def rule(layer: Layer, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Rule:
        fused = layer.mixer.use_output_gate and layer.theirs.get("fuse_norm", True)
        return same(ours[0], theirs[0 if fused else 1])

    return Tensors("o_norm.weight", "g_norm_swish_gate.weight g_norm.weight", when="output_norm_affine", layout=rule)


@FOREIGN.register("transformer")
class FLATransformer(FLAConverter):
    """FLA's Transformer, a Llama-like model."""

    architecture, mixer = "llama", "attention"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 32}
    mixer_options = (
        Unused("elementwise_affine"),
        Option("qkv_bias", default=False, write=lambda layer: layer.effective["qkv_bias"]),
        Always("out_bias", False),
        Option("qk_norm", default=False, write=lambda layer: layer.effective["qk_norm"] is not None),
        Always("qk_norm_eps", 1e-5),  # whatever the config says
        WINDOW,
        THETA,
    )


def _feature_map(activations: Mapping[str, str]) -> Option:
    """An elementwise feature map."""
    return Option("feature_map", allowed={None: None, "identity": None, **activations})


_GATED: tuple[Tensors, ...] = (PROJECTIONS, Modules("g_proj", when="use_output_gate"), gated_norm())
_GATES = {"swish": "silu", "silu": "silu"}  # also the output gate's, which has no other


@FOREIGN.register("gla")
class FLAGLA(FLAConverter):
    """FLA's GLA, also with softmax attention in some layers."""

    architecture, mixer = "gla", "gla"
    gates = _GATES
    layout_options = ("fuse_norm",)
    mixer_options = (
        Unused("use_gk use_gv gate_fn"),
        only("gate_logit_normalizer", 16, written=True),  # FLA's layer has these two, its config never reaches them
        only("gate_low_rank_dim", 16, written=True),
        Option("expand_k", default=0.5),
        Option("expand_v", default=1.0),
        _feature_map(ACTIVATIONS),
        *SHORT_CONV,
        Option("use_output_gate", default=True),
        Option("clamp_min"),
        AFFINE,
    )
    mixer_tensors = (*_GATED, Modules("gk_proj.0"), Modules("gk_proj.1", bias=True), SHORT_CONVS)


@FOREIGN.register("retnet")
class FLARetNet(FLAConverter):
    """FLA's RetNet, also with softmax attention in some layers."""

    architecture, mixer, hidden_ratio = "retnet", "retnet", 2
    gates = _GATES
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 8}
    layout_options = ("fuse_norm",)
    mixer_options = (
        Unused("use_short_conv conv_size"),  # FLA's config has them, its layer never sees them
        Option("expand_k", default=1.0),
        Option("expand_v", default=2.0),
        _feature_map(TORCH_ACTIVATIONS),  # the one layer that takes transformers' names
        Option("use_output_gate", default=True),
        AFFINE,
    )
    mixer_tensors = _GATED
