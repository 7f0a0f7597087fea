"""transformers' dense models that vary Llama's blocks: granite, smollm3, cohere, gpt_neox, diffllama."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..models.configuration import ArchConfig
from .base import FOREIGN, Converter
from .names import ACTIVATIONS, COMMON, SIZES
from .reader import POSITIVE, ConfigReader
from .rules import Rule, half_split
from .table import Always, Entry, Layer, Modules, Option, Tensors, Unused, only, under
from .transformers_dense import (
    ATTENTION,
    BIAS,
    BLOCKS,
    HEADS,
    KINDS,
    NORMS,
    Llama,
    LlamaBlocks,
    attention_bias,
    check_window,
)


def without(table: tuple[Entry, ...], *names: str) -> tuple[Entry, ...]:
    """A table without the options of these names."""
    return tuple(entry for entry in table if not (isinstance(entry, Option) and entry.names[0] in names))


MULTIPLIERS: tuple[Entry, ...] = tuple(
    Option(name, default=1.0) for name in ("embedding_multiplier", "residual_multiplier", "logits_scaling")
)
"""Granite's, but for that of the attention scores."""


@FOREIGN.register("granite")
class Granite(Llama):
    """`GraniteForCausalLM`: Llama with four multipliers."""

    model_options: ClassVar[tuple[Entry, ...]] = (
        *Llama.model_options,
        *MULTIPLIERS,
    )
    mixer = "attention"
    mixer_options = (Option("attention_multiplier", "scale", 1.0, write=lambda layer: layer.effective["scale"]),)


def _smollm3_mixers(given: Any, reader: ConfigReader) -> list[dict[str, Any]]:
    """The mixers: no rotation where `no_rope_layers` has 0, a window where `layer_types` says so."""
    count = reader.need("num_hidden_layers")
    interval = reader.given("no_rope_layer_interval", 4)
    rotated = given or [int((index + 1) % interval != 0) for index in range(count)]
    if not isinstance(rotated, list) or len(rotated) != count or not set(rotated) <= {0, 1}:
        raise ConfigError(f"config.no_rope_layers: {rotated!r} is not allowed; use 0 or 1 for each of {count} layers")
    window = reader.take("sliding_window") if reader.take("use_sliding_window", False) else None
    kinds = reader.take("layer_types")
    if kinds is None:
        kinds = [KINDS[bool(window) and not turned] for turned in rotated]
    if not isinstance(kinds, list) or len(kinds) != count or not set(kinds) <= {*KINDS}:
        raise ConfigError(
            f"config.layer_types: {kinds!r} is not allowed; use {' or '.join(KINDS)} for each of {count} layers"
        )
    check_window(kinds, window)
    return [
        {
            "type": "attention",
            "position": "rope" if turned else "none",
            "window": window or 0 if kind == KINDS[1] else 0,
        }
        for turned, kind in zip(rotated, kinds, strict=True)
    ]


def _windows(layer: Layer) -> list[int | None]:
    return layer.config.windows


@FOREIGN.register("smollm3")
class SmolLM3(Llama):
    """`SmolLM3ForCausalLM`: layers without rotation, windows in some layers."""

    defaults: ClassVar[dict[str, Any]] = {
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
    }
    model_options = (
        *Llama.model_options,
        Unused("no_rope_layer_interval"),
        Option("use_sliding_window", None, write=lambda layer: any(_windows(layer))),
        Option("sliding_window", None, write=lambda layer: max(filter(None, _windows(layer)), default=None)),
        Option("layer_types", None, kind=None, write=lambda layer: [KINDS[bool(window)] for window in _windows(layer)]),
        Option(
            "no_rope_layers",
            "mixer",
            read=_smollm3_mixers,
            write=lambda layer: [
                int(mixer.rotary(layer.config, given) is not None) for mixer, given in layer.config.mixer_specs
            ],
        ),
    )


def _interleaved(name: str, heads: Callable[[ArchConfig], Any]) -> tuple[Tensors, ...]:
    """Projections whose rotation turns neighbours there."""

    def layout(layer: Layer, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Rule:
        return half_split(ours[0], theirs[0], heads(layer.config))

    return (
        Tensors(f"{name}.weight", layout=layout),
        Tensors(f"{name}.bias", when=attention_bias, layout=layout),
    )


@FOREIGN.register("cohere")
class Cohere(LlamaBlocks):
    """`CohereForCausalLM`: parallel sublayers with one LayerNorm, neighbours turned, logits multiplied."""

    architecture = "llama"
    defaults: ClassVar[dict[str, Any]] = {
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "rope_theta": 5e5,
    }
    model_options = (
        *without(BLOCKS, "rms_norm_eps"),
        *HEADS,
        BIAS,
        Option("layer_norm_eps", "norm_eps", 1e-5),
        Always("norm", "layernorm_nobias"),
        Always("stream", "parallel"),
        only("use_qk_norm", False),
        Option(
            "logit_scale",
            "logits_scaling",
            0.0625,
            kind=POSITIVE,
            read=lambda scale, _: 1 / scale,
            write=lambda layer: 1 / layer.config.logits_scaling,
        ),
    )
    layer_tensors = (
        Modules("mixer_norm", "input_layernorm"),
        *under(
            "mixer",
            "self_attn",
            *_interleaved("q_proj", lambda config: config.num_attention_heads),
            *_interleaved("k_proj", lambda config: config.num_key_value_heads),
            Modules("v_proj o_proj", bias=attention_bias),
        ),
        *under("ffn", "mlp", Modules("gate_proj up_proj down_proj")),
    )


def _by_head(layer: Layer, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Rule:
    """Queries, keys and values of each head in turn, [H, 3, K, ...], in one tensor."""
    heads = layer.config.num_attention_heads

    def split(tensors: list[Tensor]) -> list[Tensor]:
        return [part.flatten(0, 1).contiguous() for part in tensors[0].unflatten(0, (heads, 3, -1)).unbind(1)]

    def join(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.stack([tensor.unflatten(0, (heads, -1)) for tensor in tensors], 1).flatten(0, 2)]

    return Rule(ours, theirs, split, join)


def _neox_rope(given: dict[str, Any] | None, reader: ConfigReader) -> dict[str, Any]:
    parameters = dict(given or reader.take("rope_scaling") or {})
    share = parameters.pop("partial_rotary_factor", reader.take("rotary_pct", 0.25))
    theta = parameters.pop("rope_theta", reader.take("rotary_emb_base", 10000.0))
    parameters.setdefault("rope_type", parameters.pop("type", "default"))
    return {**parameters, "rope_theta": theta, "partial_rotary_factor": share}


@FOREIGN.register("gpt_neox")
class GPTNeoX(Converter):
    """`GPTNeoXForCausalLM`: LayerNorm, sublayers in parallel or not, part of each head rotated."""

    architecture = "llama"
    their_layers = "gpt_neox.layers"
    ignored_keys = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
    model_options = (
        *SIZES,
        *(Option(name, required=True) for name in ("num_attention_heads", "vocab_size")),
        Option("intermediate_size", required=True, write=lambda layer: layer.ffn_width),
        Option("hidden_act", default="gelu", allowed=ACTIVATIONS),
        Option("max_position_embeddings", default=2048),
        Option("layer_norm_eps", "norm_eps", 1e-5),
        Option("attention_bias", default=True),
        Option("attention_dropout", default=0.0),
        Option(
            "hidden_dropout",
            ("residual_dropout", "embedding_dropout"),
            0.0,
            read=lambda rate, _: (rate, rate),
            write=lambda layer: layer.config.residual_dropout,
        ),
        Option("classifier_dropout", default=0.1),
        Option("tie_word_embeddings", default=False),
        Option(
            "use_parallel_residual",
            "stream",
            True,
            allowed=(True, False),
            read=lambda parallel, _: {"type": "parallel", "norms": "two"} if parallel else "add",
            write=lambda layer: layer.config.stream_spec[0].label == "Parallel",
        ),
        Unused("rope_scaling rotary_pct rotary_emb_base"),
        Option("rope_parameters", read=_neox_rope, write=lambda layer: dict(layer.config.rope_parameters or {})),
        *(Always(*pair) for pair in (("norm", "layernorm"), ("ffn", "mlp"), ("mlp_bias", True))),
        *COMMON,
    )
    model_tensors = (
        Modules("model.embed_tokens lm_head", "gpt_neox.embed_in lm_head"),
        Modules("model.norm", "gpt_neox.final_layer_norm", bias=True),
    )
    layer_tensors = (
        Modules("mixer_norm ffn_norm", "input_layernorm post_attention_layernorm", bias=True),
        *under(
            "mixer",
            "attention",
            Tensors("q_proj.weight k_proj.weight v_proj.weight", "query_key_value.weight", layout=_by_head),
            Tensors("q_proj.bias k_proj.bias v_proj.bias", "query_key_value.bias", attention_bias, layout=_by_head),
            Modules("o_proj", "dense", bias=attention_bias),
        ),
        *under("ffn", "mlp", Modules("up_proj down_proj", "dense_h_to_4h dense_4h_to_h", bias=True)),
    )

    def current_names(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"lm_head.weight" if key == "embed_out.weight" else key: x for key, x in state_dict.items()}


@FOREIGN.register("diffllama")
class DiffLlama(Llama):
    """`DiffLlamaForCausalLM`: differential attention in Llama's blocks."""

    architecture = "differential"
    defaults: ClassVar[dict[str, Any]] = {"rms_norm_eps": 1e-5}
    model_options = (*BLOCKS, *HEADS, BIAS, Unused("lambda_std_dev"))
    layer_tensors = (
        NORMS,
        *ATTENTION,
        Tensors(
            " ".join(f"mixer.lambda_{name}" for name in ("q1", "k1", "q2", "k2")),
            " ".join(f"self_attn.lambda_{name}" for name in ("q1", "k1", "q2", "k2")),
        ),
        *under("ffn", "mlp", Modules("gate_proj up_proj down_proj")),
    )
