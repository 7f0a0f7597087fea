"""flash-linear-attention (FLA) 0.6: transformer, gla, retnet, and the parts that every FLA family shares.

FLA's blocks are `x + attn(RMS(x))`, `x + mlp(RMS(x))`; a hybrid's `attn` (a dict or a list of dicts) puts softmax
attention in some layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ..core.errors import ConfigError
from ..core.registry import MIXERS
from ..models.configuration import ArchConfig
from .base import FOREIGN, Converter, Rule, parts, same
from .reader import ConfigReader
from .transformers_dense import ACTIVATIONS as TORCH_ACTIVATIONS
from .transformers_dense import THEIR_ACTIVATIONS as THEIR_TORCH_ACTIVATIONS
from .transformers_dense import take_tokens, their_tokens

_QK_NORM_EPS = 1e-5
# FLA's normalisation of heads has this epsilon whatever the config says.


ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "sqrelu": "relu2",
    "gelu": "gelu_tanh",  # FLA's gelu is the approximation
    "sigmoid": "sigmoid",
    "logsigmoid": "logsigmoid",
}
THEIR_ACTIVATIONS = {ours: theirs for theirs, ours in ACTIVATIONS.items()}


class FLAConverter(Converter):
    """What the "std" families share: sizes, the gated MLP, hybrids, the keys of a block."""

    architecture: str
    mixer: str
    hidden_ratio: float = 4
    grouped_heads = True
    """Whether it has `num_kv_heads`."""
    penalises_logits = False
    """`use_l2warp` where a config does not say."""
    gates: ClassVar[dict[str, str]] = {"swish": "silu", "silu": "silu", "powlu": "powlu"}
    """Activations of the gated MLP, and ours."""

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        """The mixer's options in our names."""
        raise NotImplementedError

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        """The same, the other way."""
        raise NotImplementedError

    def mixer_rules(
        self, config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str
    ) -> list[Rule]:
        """The tensors of one mixer; `ours` and `theirs` are the key
        prefixes."""
        raise NotImplementedError

    def model_rules(self, config: ArchConfig) -> list[Rule]:
        """Tensors of the model beside its layers and embeddings."""
        return []

    def block_to_ours(self, reader: ConfigReader, hidden_size: int) -> dict[str, Any]:
        """The norms and the feed-forward in our names."""
        reader.only("attnres_block_size", [None], None)
        ratio = reader.take("hidden_ratio", self.hidden_ratio) or self.hidden_ratio
        return {
            "norm_eps": reader.take("norm_eps", 1e-6),
            "ffn": "glu",
            "hidden_act": self.gates[reader.only("hidden_act", self.gates, "swish")],
            "intermediate_size": reader.take("intermediate_size") or _mlp_width(hidden_size, ratio),
        }

    def block_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        """The same, the other way."""
        ffn, options = config.ffn_specs[0]
        act = getattr(options, "hidden_act", None) or config.hidden_act
        return {
            "norm_eps": config.norm_eps,
            "intermediate_size": ffn.width(config, options) if hasattr(ffn, "width") else None,
            "hidden_act": "powlu" if act == "powlu" else "swish",
        }

    def norm_names(self, config: ArchConfig) -> tuple[str, ...]:
        """The parameters of a block's norms."""
        return ("weight",)

    def block_rules(self, config: ArchConfig, layer: str) -> list[Rule]:
        """The tensors of one layer beside its mixer; both sides number the layers alike."""
        rules = parts(f"{layer}.mixer_norm", f"{layer}.attn_norm") + parts(f"{layer}.ffn_norm", f"{layer}.mlp_norm")
        for name in ("gate_proj", "up_proj", "down_proj"):
            rules += parts(f"{layer}.ffn.{name}", f"{layer}.mlp.{name}")
        return rules

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        reader.dead(
            "attn_mode", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "fuse_linear_cross_entropy", "criterion"
        )
        heads = reader.take("num_heads", 4)
        values = {
            "architecture": self.architecture,
            "vocab_size": reader.take("vocab_size", 32000),
            "hidden_size": reader.need("hidden_size"),
            "num_hidden_layers": reader.need("num_hidden_layers"),
            "num_attention_heads": heads,
            "num_key_value_heads": (reader.take("num_kv_heads") if self.grouped_heads else None) or heads,
            "max_position_embeddings": reader.take("max_position_embeddings", 2048) or 2048,
            "tie_word_embeddings": reader.take("tie_word_embeddings", False),
            "max_logit_penalty": reader.max_logit_penalty(self.penalises_logits),
        }
        values |= self.block_to_ours(reader, values["hidden_size"])
        reader.dead("hidden_ratio")
        values["mixer"] = {"type": self.mixer, **self.mixer_to_ours(reader)}
        hybrid = reader.take("attn")
        if hybrid:
            values["mixer"] = _hybrid_layers(values["mixer"], hybrid, values["num_hidden_layers"])
            values["position"] = "rope"
        return take_tokens(reader, values)

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        own = [options for mixer, options in config.mixer_specs if mixer is MIXERS.get(self.mixer)]
        attention = [(i, o) for i, (mixer, o) in enumerate(config.mixer_specs) if mixer.label == ""]
        if not own and config.model_type != f"hfa_{self.architecture}":
            raise ConfigError(f"mixer: no layer is {self.mixer!r}; a {self.architecture} checkpoint needs at least one")
        return {
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            **({"num_kv_heads": config.num_key_value_heads} if self.grouped_heads else {}),
            "max_position_embeddings": config.max_position_embeddings,
            "tie_word_embeddings": config.tie_word_embeddings,
            "use_l2warp": config.max_logit_penalty != 0,
            **self.block_to_theirs(config),
            "initializer_range": config.initializer_range,
            **their_tokens(config),
            **(self.mixer_to_theirs(config, own[0]) if own else {}),
            **({"attn": _hybrid_dicts(config, attention)} if self.mixer != "attention" and attention else {}),
        }

    def rules(self, config: ArchConfig, foreign: dict[str, Any]) -> list[Rule]:
        rules = [
            same("model.embed_tokens.weight", "model.embeddings.weight"),
            *parts("model.norm", "model.norm", self.norm_names(config)),
            same("lm_head.weight", "lm_head.weight"),
            *self.model_rules(config),
        ]
        for index, (mixer, options) in enumerate(config.mixer_specs):
            layer = f"model.layers.{index}"
            rules += self.block_rules(config, layer)
            make: Callable[..., list[Rule]] = attention_rules if mixer.label == "" else self.mixer_rules
            rules += make(config, options, foreign, f"{layer}.mixer", f"{layer}.attn")
        return rules


def _mlp_width(hidden_size: int, ratio: float) -> int:
    return 256 * -(-int(hidden_size * ratio * 2 / 3) // 256)


def _hybrid_layers(mixer: dict[str, Any], hybrid: Any, num_layers: int) -> list[dict[str, Any]]:
    """One mixer a layer: softmax attention where a hybrid's `attn` names the layer."""
    mixers = [dict(mixer) for _ in range(num_layers)]
    for group in hybrid if isinstance(hybrid, list) else [hybrid]:
        if not isinstance(group, dict):
            raise ConfigError(f"config.attn: {group!r} is no group; use a dict with `layers` and `num_heads`")
        reader = ConfigReader({"model_type": "hybrid", **group}, "config.attn")
        heads, layers = reader.need("num_heads"), reader.need("layers")
        attention = {
            "type": "attention",
            "num_heads": heads,
            "num_kv_heads": reader.given("num_kv_heads", heads),
            "qkv_bias": bool(reader.take("qkv_bias", False)),
            "out_bias": False,
            "window": reader.given("window_size", 0),
            "rope_theta": float(reader.given("rope_theta", 10000.0)),
        }
        reader.finish()
        for index in layers if isinstance(layers, (list, tuple)) else [layers]:
            if not isinstance(index, int) or not 0 <= index < num_layers:
                raise ConfigError(f"config.attn.layers: {index!r} is not a layer; allowed: 0 to {num_layers - 1}")
            mixers[index] = dict(attention)
    return mixers


def _hybrid_dicts(config: ArchConfig, attention: list[tuple[int, Any]]) -> list[dict[str, Any]]:
    """A hybrid's `attn`, a group per layer."""
    groups = []
    for index, options in attention:
        mixer = config.mixer_specs[index][0]
        effective = mixer.effective(config, options)
        heads, kv_heads, _ = effective["heads"]
        theta = options.rope_theta or (config.rope_parameters or {}).get("rope_theta", 10000.0)
        groups.append(
            {
                "layers": [index],
                "num_heads": heads,
                "num_kv_heads": kv_heads,
                "qkv_bias": effective["qkv_bias"],
                "window_size": effective["window"],
                "rope_theta": theta,
            }
        )
    return groups


def attention_rules(config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str) -> list[Rule]:
    """FLA's softmax attention."""
    bias = config.attention_bias if options.qkv_bias is None else options.qkv_bias
    rules = [same(f"{ours}.o_proj.weight", f"{theirs}.o_proj.weight")]
    for name in ("q_proj", "k_proj", "v_proj"):
        rules += parts(f"{ours}.{name}", f"{theirs}.{name}", ("weight", "bias") if bias else ("weight",))
    if config.qk_norm if options.qk_norm is None else options.qk_norm:
        rules += parts(f"{ours}.q_norm", f"{theirs}.q_norm") + parts(f"{ours}.k_norm", f"{theirs}.k_norm")
    return rules


def short_conv_rules(ours: str, theirs: str, names: str = "qkv") -> list[Rule]:
    """The short convolutions on queries, keys and values."""
    return [same(f"{ours}.{name}_conv.weight", f"{theirs}.{name}_conv1d.weight") for name in names]


def gated_norm_rules(options: Any, foreign: dict[str, Any], ours: str, theirs: str) -> list[Rule]:
    """The output gate and its norm, whose key depends on whether FLA fuses the two."""
    gated = getattr(options, "use_output_gate", True)
    rules = [same(f"{ours}.g_proj.weight", f"{theirs}.g_proj.weight")] if gated else []
    if getattr(options, "output_norm_affine", True):
        fused_gate = gated and foreign.get("fuse_norm", True)
        rules.append(
            same(f"{ours}.o_norm.weight", f"{theirs}.{'g_norm_swish_gate' if fused_gate else 'g_norm'}.weight")
        )
    return rules


@FOREIGN.register("transformer")
class FLATransformer(FLAConverter):
    """FLA's Transformer, a Llama-like model."""

    architecture, mixer = "llama", "attention"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 32}

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        reader.dead("elementwise_affine")
        return {
            "qkv_bias": reader.take("qkv_bias", False),
            "out_bias": False,
            "qk_norm": reader.take("qk_norm", False),
            "qk_norm_eps": _QK_NORM_EPS,
            "window": reader.take("window_size") or 0,
            "rope_theta": float(reader.take("rope_theta", 10000.0) or 10000.0),
        }

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        effective = config.mixer_specs[0][0].effective(config, options)
        return {
            "qkv_bias": effective["qkv_bias"],
            "qk_norm": effective["qk_norm"] is not None,
            "window_size": effective["window"],
            "rope_theta": options.rope_theta or (config.rope_parameters or {}).get("rope_theta", 10000.0),
        }


@FOREIGN.register("gla")
class FLAGLA(FLAConverter):
    """FLA's GLA, also with softmax attention in some layers."""

    architecture, mixer = "gla", "gla"
    gates: ClassVar[dict[str, str]] = {"swish": "silu", "silu": "silu"}  # also the output gate's, which has no other
    layout_options = ("fuse_norm",)

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        reader.dead("use_gk", "use_gv", "gate_fn")
        for name in ("gate_logit_normalizer", "gate_low_rank_dim"):
            reader.only(name, [16], 16)  # FLA's layer has these options, its config never reaches them
        return {
            "expand_k": reader.take("expand_k", 0.5),
            "expand_v": reader.take("expand_v", 1.0),
            "feature_map": _feature_map(reader, ACTIVATIONS),
            "use_short_conv": reader.take("use_short_conv", False),
            "conv_size": reader.take("conv_size", 4),
            "use_output_gate": reader.take("use_output_gate", True),
            "clamp_min": reader.take("clamp_min"),
            "output_norm_affine": reader.take("elementwise_affine", True) is not False,
        }

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        names = ("expand_k", "expand_v", "use_short_conv", "conv_size", "use_output_gate", "clamp_min")
        return {
            **{name: getattr(options, name) for name in names},
            "feature_map": THEIR_ACTIVATIONS.get(options.feature_map, options.feature_map),
            "gate_logit_normalizer": options.gate_logit_normalizer,
            "gate_low_rank_dim": options.gate_low_rank_dim,
            "elementwise_affine": options.output_norm_affine,
        }

    def mixer_rules(
        self, config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str
    ) -> list[Rule]:
        rules = [
            same(f"{ours}.{name}.weight", f"{theirs}.{name}.weight")
            for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        ]
        rules += parts(f"{ours}.gk_proj.0", f"{theirs}.gk_proj.0")
        rules += parts(f"{ours}.gk_proj.1", f"{theirs}.gk_proj.1", ("weight", "bias"))
        if options.use_short_conv:
            rules += short_conv_rules(ours, theirs)
        return rules + gated_norm_rules(options, foreign, ours, theirs)


@FOREIGN.register("retnet")
class FLARetNet(FLAConverter):
    """FLA's RetNet, also with softmax attention in some layers."""

    architecture, mixer, hidden_ratio = "retnet", "retnet", 2
    gates: ClassVar[dict[str, str]] = {"swish": "silu", "silu": "silu"}  # also the output gate's, which has no other
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 8}
    layout_options = ("fuse_norm",)

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        reader.dead("use_short_conv", "conv_size")  # FLA's config has them, its layer never sees them
        return {
            "expand_k": reader.take("expand_k", 1.0),
            "expand_v": reader.take("expand_v", 2.0),
            "feature_map": _feature_map(reader, TORCH_ACTIVATIONS),  # the one layer that takes transformers' names
            "use_output_gate": reader.take("use_output_gate", True),
            "output_norm_affine": reader.take("elementwise_affine", True) is not False,
        }

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        names = ("expand_k", "expand_v", "use_output_gate")
        return {
            **{name: getattr(options, name) for name in names},
            "feature_map": THEIR_TORCH_ACTIVATIONS.get(options.feature_map, options.feature_map),
            "elementwise_affine": options.output_norm_affine,
        }

    def mixer_rules(
        self, config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str
    ) -> list[Rule]:
        rules = [
            same(f"{ours}.{name}.weight", f"{theirs}.{name}.weight")
            for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        ]
        return rules + gated_norm_rules(options, foreign, ours, theirs)


def _feature_map(reader: ConfigReader, activations: dict[str, str]) -> str | None:
    """An elementwise feature map in our name; an error for one that is not here."""
    names: dict[str | None, str | None] = {None: None, "identity": None}
    names.update(activations)
    return names[reader.only("feature_map", names, None)]
