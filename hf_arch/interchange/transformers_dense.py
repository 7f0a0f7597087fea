"""transformers' dense attention models: gpt2, llama, mistral, qwen3."""

from __future__ import annotations

from typing import Any, ClassVar

from ..core.errors import ConfigError
from ..models.configuration import ArchConfig
from .base import FOREIGN, Converter, Rule, fused, parts, same, transposed
from .reader import ConfigReader

ACTIVATIONS = {
    **{name: name for name in ("gelu", "silu", "relu", "relu2", "leaky_relu", "sigmoid", "tanh")},
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_tanh"), "gelu_tanh"),
    "gelu_python": "gelu",
    "swish": "silu",
    "linear": "identity",
}
"""transformers' names of activations, and ours."""
THEIR_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "identity": "linear"}
"""Ours, where transformers has another name."""
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


def take_tokens(reader: ConfigReader, config: dict[str, Any]) -> dict[str, Any]:
    """`config` with the special tokens that the source names."""
    return {**config, **{name: reader.config[name] for name in _TOKENS if name in reader.config}}


def their_tokens(config: ArchConfig) -> dict[str, Any]:
    """The special tokens, under the names that both sides use."""
    return {name: getattr(config, name) for name in _TOKENS}


def activation(reader: ConfigReader, key: str, default: str) -> str:
    """An activation in our name; an error for one that is not here."""
    return ACTIVATIONS[reader.only(key, ACTIVATIONS, default)]


@FOREIGN.register("gpt2")
class GPT2(Converter):
    """`GPT2LMHeadModel`: queries, keys and values fused, matrices transposed."""

    ignored_keys = (".attn.bias", ".attn.masked_bias")

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        layers, heads, width = reader.take("n_layer", 12), reader.take("n_head", 12), reader.take("n_embd", 768)
        scaled, by_layer = (
            reader.take("scale_attn_weights", True),
            reader.take("scale_attn_by_inverse_layer_idx", False),
        )
        scale = (width / heads) ** -0.5 if scaled else 1.0
        scales = [scale / (index + 1 if by_layer else 1) for index in range(layers)]
        mixer = "attention" if scaled and not by_layer else [{"type": "attention", "scale": each} for each in scales]
        reader.only("add_cross_attention", [False], False)
        reader.dead("reorder_and_upcast_attn", "n_ctx")
        reader.dead(
            *(f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout"))
        )
        return take_tokens(
            reader,
            {
                "architecture": "gpt2",
                "vocab_size": reader.take("vocab_size", 50257),
                "hidden_size": width,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "mixer": mixer,
                "max_position_embeddings": reader.take("n_positions", 1024),
                "intermediate_size": reader.take("n_inner"),
                "hidden_act": activation(reader, "activation_function", "gelu_new"),
                "residual_dropout": reader.take("resid_pdrop", 0.1),
                "embedding_dropout": reader.take("embd_pdrop", 0.1),
                "attention_dropout": reader.take("attn_pdrop", 0.1),
                "norm_eps": reader.take("layer_norm_epsilon", 1e-5),
                "tie_word_embeddings": reader.take("tie_word_embeddings", True),
            },
        )

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        ffn, options = config.ffn_specs[0]
        scales = [mixer.effective(config, given).get("scale") for mixer, given in config.mixer_specs]
        return {
            "vocab_size": config.vocab_size,
            "n_embd": config.hidden_size,
            "n_layer": config.num_hidden_layers,
            "n_head": config.num_attention_heads,
            "n_positions": config.max_position_embeddings,
            "scale_attn_weights": scales[0] != 1.0,
            "scale_attn_by_inverse_layer_idx": len({*scales}) > 1,
            "n_inner": ffn.width(config, options) if hasattr(ffn, "width") else None,
            "activation_function": {**THEIR_ACTIVATIONS, "gelu_tanh": "gelu_new"}.get(
                config.hidden_act, config.hidden_act
            ),
            "resid_pdrop": config.residual_dropout,
            "embd_pdrop": config.embedding_dropout,
            "attn_pdrop": config.attention_dropout,
            "layer_norm_epsilon": config.norm_eps,
            "tie_word_embeddings": config.tie_word_embeddings,
            "initializer_range": config.initializer_range,
            **their_tokens(config),
        }

    def rules(self, config: ArchConfig, foreign: dict[str, Any]) -> list[Rule]:
        rules = [
            same("model.embed_tokens.weight", "transformer.wte.weight"),
            same("model.position.embedding.weight", "transformer.wpe.weight"),
            *parts("model.norm", "transformer.ln_f", ("weight", "bias")),
            same("lm_head.weight", "lm_head.weight"),
        ]
        for index in range(config.num_hidden_layers):
            ours, theirs = f"model.layers.{index}", f"transformer.h.{index}"
            rules += parts(f"{ours}.mixer_norm", f"{theirs}.ln_1", ("weight", "bias"))
            rules += parts(f"{ours}.ffn_norm", f"{theirs}.ln_2", ("weight", "bias"))
            for name, flip in (("weight", True), ("bias", False)):
                projections = [f"{ours}.mixer.{part}_proj.{name}" for part in "qkv"]
                rules.append(fused(projections, f"{theirs}.attn.c_attn.{name}", [config.hidden_size] * 3, flip=flip))
            for module, their_module in (
                ("mixer.o_proj", "attn.c_proj"),
                ("ffn.up_proj", "mlp.c_fc"),
                ("ffn.down_proj", "mlp.c_proj"),
            ):
                rules.append(transposed(f"{ours}.{module}.weight", f"{theirs}.{their_module}.weight"))
                rules.append(same(f"{ours}.{module}.bias", f"{theirs}.{their_module}.bias"))
        return rules


@FOREIGN.register("llama")
class Llama(Converter):
    """`LlamaForCausalLM`."""

    ignored_keys = (".rotary_emb.inv_freq",)  # of files from 2023

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        hidden, heads = reader.need("hidden_size"), reader.need("num_attention_heads")
        rope = dict(reader.take("rope_parameters") or reader.take("rope_scaling") or {})
        reader.dead("rope_scaling")
        theta = reader.take("rope_theta", 10000.0)
        rope.setdefault("rope_theta", theta)
        rope.setdefault("rope_type", rope.pop("type", "default"))
        if rope["rope_type"] == "default":
            rope.pop("partial_rotary_factor", None)  # these models rotate whole heads, whatever it says
        return take_tokens(
            reader,
            {
                "architecture": "llama",
                "vocab_size": reader.need("vocab_size"),
                "hidden_size": hidden,
                "intermediate_size": reader.need("intermediate_size"),
                "num_hidden_layers": reader.need("num_hidden_layers"),
                "num_attention_heads": heads,
                "num_key_value_heads": reader.take("num_key_value_heads") or heads,
                "head_dim": reader.take("head_dim") or hidden // heads,
                "hidden_act": activation(reader, "hidden_act", "silu"),
                "max_position_embeddings": reader.take("max_position_embeddings", 2048),
                "norm_eps": reader.take("rms_norm_eps", 1e-6),
                "rope_parameters": rope,
                "attention_dropout": reader.take("attention_dropout", 0.0),
                "tie_word_embeddings": reader.take("tie_word_embeddings", False),
                **self.own_options(reader),
            },
        )

    def own_options(self, reader: ConfigReader) -> dict[str, Any]:
        """What this family has beyond the common fields."""
        return {
            "attention_bias": reader.take("attention_bias", False),
            "mlp_bias": reader.take("mlp_bias", False),
        }

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        ffn, options = config.ffn_specs[0]
        return {
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "intermediate_size": ffn.width(config, options) if hasattr(ffn, "width") else 4 * config.hidden_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "hidden_act": THEIR_ACTIVATIONS.get(config.hidden_act, config.hidden_act),
            "max_position_embeddings": config.max_position_embeddings,
            "rms_norm_eps": config.norm_eps,
            "rope_parameters": dict(config.rope_parameters or {}),
            "attention_dropout": config.attention_dropout,
            "tie_word_embeddings": config.tie_word_embeddings,
            "initializer_range": config.initializer_range,
            **self.their_options(config),
            **their_tokens(config),
        }

    def their_options(self, config: ArchConfig) -> dict[str, Any]:
        """`own_options`, the other way."""
        return {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}

    def rules(self, config: ArchConfig, foreign: dict[str, Any]) -> list[Rule]:
        rules = [
            same("model.embed_tokens.weight", "model.embed_tokens.weight"),
            same("model.norm.weight", "model.norm.weight"),
            same("lm_head.weight", "lm_head.weight"),
        ]
        feed_forward = ("weight", "bias") if config.mlp_bias else ("weight",)
        for index in range(config.num_hidden_layers):
            layer = f"model.layers.{index}"
            rules.append(same(f"{layer}.mixer_norm.weight", f"{layer}.input_layernorm.weight"))
            rules.append(same(f"{layer}.ffn_norm.weight", f"{layer}.post_attention_layernorm.weight"))
            rules += self.attention_rules(config, index)
            rules += self.feed_forward_rules(config, index, feed_forward)
        return rules

    def attention_rules(self, config: ArchConfig, index: int) -> list[Rule]:
        """The tensors of layer `index`'s attention."""
        ours, theirs = f"model.layers.{index}.mixer", f"model.layers.{index}.self_attn"
        names = ("weight", "bias") if config.attention_bias else ("weight",)
        rules = []
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            rules += parts(f"{ours}.{name}", f"{theirs}.{name}", names)
        for name in ("q_norm", "k_norm") if config.qk_norm else ():
            rules += parts(f"{ours}.{name}", f"{theirs}.{name}")
        return rules

    def feed_forward_rules(self, config: ArchConfig, index: int, names: tuple[str, ...]) -> list[Rule]:
        """The tensors of layer `index`'s FFN."""
        layer = f"model.layers.{index}"
        return [
            rule
            for name in ("gate_proj", "up_proj", "down_proj")
            for rule in parts(f"{layer}.ffn.{name}", f"{layer}.mlp.{name}", names)
        ]


@FOREIGN.register("mistral")
class Mistral(Llama):
    """`MistralForCausalLM`: a window on every layer."""

    defaults: ClassVar[dict[str, Any]] = {"num_key_value_heads": 8, "max_position_embeddings": 131072}

    def own_options(self, reader: ConfigReader) -> dict[str, Any]:
        return {"sliding_window": reader.take("sliding_window", 4096)}

    def their_options(self, config: ArchConfig) -> dict[str, Any]:
        return {"sliding_window": config.sliding_window}


@FOREIGN.register("qwen3")
class Qwen3(Llama):
    """`Qwen3ForCausalLM`: RMS-normed queries and keys; windows on the layers that `layer_types` calls sliding."""

    defaults: ClassVar[dict[str, Any]] = {
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
    }

    def own_options(self, reader: ConfigReader) -> dict[str, Any]:
        window, layers = reader.take("sliding_window"), reader.need("num_hidden_layers")
        full_layers = reader.take("max_window_layers", 28)
        if not reader.take("use_sliding_window", False):
            window = None
        kinds = reader.take("layer_types") or [
            "sliding_attention" if window and index >= full_layers else "full_attention" for index in range(layers)
        ]
        known = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= {*known}:
            raise ConfigError(
                f"config.layer_types: {kinds!r} is not allowed; use {' or '.join(known)} for each of {layers} layers"
            )
        windows = [window if kind == "sliding_attention" else 0 for kind in kinds]
        options: dict[str, Any] = {"qk_norm": True, "attention_bias": reader.take("attention_bias", False)}
        if any(windows):
            options["mixer"] = [{"type": "attention", "window": size or 0} for size in windows]
        return options

    def their_options(self, config: ArchConfig) -> dict[str, Any]:
        windows = config.windows
        return {
            "attention_bias": config.attention_bias,
            "use_sliding_window": any(windows),
            "sliding_window": max((window for window in windows if window), default=None),
            "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
        }
