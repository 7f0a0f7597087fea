"""transformers' dense attention models: gpt2, llama, mistral, qwen3."""

from __future__ import annotations

from typing import Any, ClassVar

from ..core.errors import ConfigError
from .base import FOREIGN, Converter
from .names import ACTIVATIONS, COMMON, SIZES
from .reader import ConfigReader
from .rules import fused, transposed
from .table import Always, Entry, Layer, Modules, Option, Tensors, Unused, only, under


def _scales(reader: ConfigReader, scaled: bool) -> Any:
    """The mixers, whose scores may have a factor of their own, by layer."""
    by_layer = reader.take("scale_attn_by_inverse_layer_idx", False)
    if scaled and not by_layer:
        return "attention"
    scale = (reader.take("n_embd", 768) / reader.take("n_head", 12)) ** -0.5 if scaled else 1.0
    layers = range(reader.take("n_layer", 12))
    return [{"type": "attention", "scale": scale / (index + 1 if by_layer else 1)} for index in layers]


def _their_scales(layer: Layer) -> list[float | None]:
    return [mixer.effective(layer.config, options).get("scale") for mixer, options in layer.config.mixer_specs]


@FOREIGN.register("gpt2")
class GPT2(Converter):
    """`GPT2LMHeadModel`: queries, keys and values fused, matrices transposed."""

    architecture = "gpt2"
    their_layers = "transformer.h"
    ignored_keys = (".attn.bias", ".attn.masked_bias")
    model_options = (
        Unused("reorder_and_upcast_attn n_ctx summary_type summary_use_proj summary_activation"),
        Unused("summary_proj_to_labels summary_first_dropout"),
        only("add_cross_attention", False),
        Option("vocab_size", default=50257),
        Option("n_embd", "hidden_size", 768),
        Option("n_layer", "num_hidden_layers", 12),
        Option("n_head", "num_attention_heads", 12),
        Option(
            "scale_attn_weights",
            "mixer",
            True,
            read=lambda scaled, reader: _scales(reader, scaled),
            write=lambda layer: _their_scales(layer)[0] != 1.0,
        ),
        Option("scale_attn_by_inverse_layer_idx", None, write=lambda layer: len({*_their_scales(layer)}) > 1),
        Option("n_positions", "max_position_embeddings", 1024),
        Option("n_inner", "intermediate_size", write=lambda layer: layer.ffn_width),
        Option("activation_function", "hidden_act", "gelu_new", allowed={"gelu_new": "gelu_tanh", **ACTIVATIONS}),
        Option("resid_pdrop", "residual_dropout", 0.1),
        Option("embd_pdrop", "embedding_dropout", 0.1),
        Option("attn_pdrop", "attention_dropout", 0.1),
        Option("layer_norm_epsilon", "norm_eps", 1e-5),
        Option("tie_word_embeddings", default=True),
        *COMMON,
    )
    model_tensors = (
        Tensors("model.embed_tokens.weight lm_head.weight", "transformer.wte.weight lm_head.weight"),
        Tensors("model.position.embedding.weight", "transformer.wpe.weight"),
        Modules("model.norm", "transformer.ln_f", bias=True),
    )
    layer_tensors = (
        Modules("mixer_norm ffn_norm", "ln_1 ln_2", bias=True),
        *(
            Tensors(
                f"mixer.q_proj.{name} mixer.k_proj.{name} mixer.v_proj.{name}",
                f"attn.c_attn.{name}",
                layout=lambda layer, ours, theirs: fused(
                    ours, theirs[0], [layer.config.hidden_size] * 3, flip=theirs[0].endswith("weight")
                ),
            )
            for name in ("weight", "bias")
        ),
        *(
            Tensors(ours, theirs, layout=lambda _, mine, other: transposed(mine[0], other[0]))
            for ours, theirs in (
                ("mixer.o_proj.weight", "attn.c_proj.weight"),
                ("ffn.up_proj.weight", "mlp.c_fc.weight"),
                ("ffn.down_proj.weight", "mlp.c_proj.weight"),
            )
        ),
        Tensors(
            "mixer.o_proj.bias ffn.up_proj.bias ffn.down_proj.bias", "attn.c_proj.bias mlp.c_fc.bias mlp.c_proj.bias"
        ),
    )


def _rope(given: dict[str, Any] | None, reader: ConfigReader) -> dict[str, Any]:
    rope = dict(given or reader.take("rope_scaling") or {})
    rope.setdefault("rope_theta", reader.take("rope_theta", 10000.0))
    rope.setdefault("rope_type", rope.pop("type", "default"))
    if rope["rope_type"] == "default":
        rope.pop("partial_rotary_factor", None)  # these models rotate whole heads, whatever it says
    return rope


def attention_bias(layer: Layer) -> bool:
    """Whether the projections of attention have biases."""
    return layer.config.attention_bias


BIAS = Option("attention_bias", default=False)
HEADS: tuple[Entry, ...] = (
    Option(
        "num_key_value_heads",
        read=lambda given, reader: given or reader.need("num_attention_heads"),
    ),
    Option(
        "head_dim",
        read=lambda given, reader: given or reader.need("hidden_size") // reader.need("num_attention_heads"),
    ),
)
BLOCKS: tuple[Entry, ...] = (
    *SIZES,
    *(Option(name, required=True) for name in ("num_attention_heads", "vocab_size")),
    Option(
        "intermediate_size",
        required=True,
        write=lambda layer: layer.ffn_width or 4 * layer.config.hidden_size,
    ),
    Option("hidden_act", default="silu", allowed=ACTIVATIONS),
    Option("max_position_embeddings", default=2048),
    Option("rms_norm_eps", "norm_eps", 1e-6),
    Unused("rope_scaling rope_theta"),
    Option("rope_parameters", read=_rope, write=lambda layer: dict(layer.config.rope_parameters or {})),
    Option("attention_dropout", default=0.0),
    Option("tie_word_embeddings", default=False),
    *COMMON,
)
"""The options of every model with Llama's blocks."""
NORMS = Modules("mixer_norm ffn_norm", "input_layernorm post_attention_layernorm")
ATTENTION: tuple[Tensors, ...] = under(
    "mixer",
    "self_attn",
    Modules("q_proj k_proj v_proj o_proj", bias=attention_bias),
    Modules("q_norm k_norm", when=lambda layer: layer.config.qk_norm),
)


class LlamaBlocks(Converter):
    """What models with Llama's blocks have around them."""

    ignored_keys: tuple[str, ...] = (".rotary_emb.inv_freq",)  # of files from 2023
    model_tensors = (Modules("model.embed_tokens model.norm lm_head"),)


@FOREIGN.register("llama")
class Llama(LlamaBlocks):
    """`LlamaForCausalLM`."""

    architecture = "llama"
    model_options: ClassVar[tuple[Entry, ...]] = (*BLOCKS, *HEADS, BIAS, Option("mlp_bias", default=False))
    layer_tensors = (
        NORMS,
        *ATTENTION,
        *under("ffn", "mlp", Modules("gate_proj up_proj down_proj", bias=lambda layer: layer.config.mlp_bias)),
    )


@FOREIGN.register("mistral")
class Mistral(Llama):
    """`MistralForCausalLM`: a window on every layer."""

    defaults: ClassVar[dict[str, Any]] = {"num_key_value_heads": 8, "max_position_embeddings": 131072}
    model_options = (*BLOCKS, *HEADS, Option("sliding_window", default=4096))


KINDS = ("full_attention", "sliding_attention")


def check_window(kinds: list[str], window: int | None) -> None:
    """Raise a ConfigError where layers have a window and the config says none."""
    if not window and "sliding_attention" in kinds:
        raise ConfigError(
            f"config.layer_types: 'sliding_attention' needs use_sliding_window and a sliding_window >= 1, not {window}"
        )


def _layer_kinds(kinds: Any, reader: ConfigReader) -> Any:
    """The mixers: windows on the layers that `layer_types` calls sliding."""
    window, layers = reader.take("sliding_window"), reader.need("num_hidden_layers")
    full_layers = reader.take("max_window_layers", 28)
    if not reader.take("use_sliding_window", False):
        window = None
    kinds = kinds or [KINDS[bool(window) and index >= full_layers] for index in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= {*KINDS}:
        raise ConfigError(
            f"config.layer_types: {kinds!r} is not allowed; use {' or '.join(KINDS)} for each of {layers} layers"
        )
    check_window(kinds, window)
    windows = [window or 0 if kind == "sliding_attention" else 0 for kind in kinds]
    return [{"type": "attention", "window": size} for size in windows] if any(windows) else "attention"


@FOREIGN.register("qwen3")
class Qwen3(Llama):
    """`Qwen3ForCausalLM`: RMS-normed queries and keys; windows on the layers that `layer_types` calls sliding."""

    defaults: ClassVar[dict[str, Any]] = {
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
    }
    model_options = (
        *BLOCKS,
        *HEADS,
        BIAS,
        Always("qk_norm", True),
        Option("use_sliding_window", None, write=lambda layer: any(layer.config.windows)),
        Option("sliding_window", None, write=lambda layer: max(filter(None, layer.config.windows), default=None)),
        Option(
            "layer_types",
            "mixer",
            read=_layer_kinds,
            write=lambda layer: [KINDS[bool(window)] for window in layer.config.windows],
        ),
    )
