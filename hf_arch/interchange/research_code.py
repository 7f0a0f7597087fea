"""Checkpoints of two research code bases: nanoGPT (`model_type: nanogpt`) and litgpt (`model_type: litgpt`).

Neither writes a `model_type` into its config: pass nanoGPT's `model_args` or litgpt's `model_config.yaml` as a dict and
add it. From litgpt come its Llama-like models (RMSNorm, `LLaMAMLP`, blocks in sequence); keys `attn.qkv` (queries, keys
and values one after the other) and the older `attn.attn` (interleaved by query group) are read as the config's
`legacy_qkv` says.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..layers.mixers.base import divide
from ..models.configuration import ArchConfig
from .base import FOREIGN, Converter, Rule, fused, parts, same
from .reader import ConfigReader


@FOREIGN.register("nanogpt")
class NanoGPT(Converter):
    """GPT-2 with an exact GELU, one flag for all biases, and a head that is always tied."""

    ignored_keys = (".attn.bias",)

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        bias, dropout = reader.take("bias", True), reader.take("dropout", 0.0)
        return {
            "architecture": "gpt2",
            "vocab_size": reader.take("vocab_size", 50304),
            "hidden_size": reader.take("n_embd", 768),
            "num_hidden_layers": reader.take("n_layer", 12),
            "num_attention_heads": reader.take("n_head", 12),
            "max_position_embeddings": reader.take("block_size", 1024),
            "hidden_act": "gelu",
            "norm": "layernorm" if bias else "layernorm_nobias",
            "attention_bias": bias,
            "mlp_bias": bias,
            "residual_dropout": dropout,
            "embedding_dropout": dropout,
            "attention_dropout": dropout,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": None,
        }

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        return {
            "vocab_size": config.vocab_size,
            "n_embd": config.hidden_size,
            "n_layer": config.num_hidden_layers,
            "n_head": config.num_attention_heads,
            "block_size": config.max_position_embeddings,
            "bias": config.attention_bias,
            "dropout": config.residual_dropout,
        }

    def rules(self, config: ArchConfig, foreign: dict[str, Any]) -> list[Rule]:
        names = ("weight", "bias") if config.attention_bias else ("weight",)
        rules = [
            same("model.embed_tokens.weight", "transformer.wte.weight"),
            same("model.position.embedding.weight", "transformer.wpe.weight"),
            *parts("model.norm", "transformer.ln_f", names),
            same("lm_head.weight", "lm_head.weight"),
        ]
        for index in range(config.num_hidden_layers):
            ours, theirs = f"model.layers.{index}", f"transformer.h.{index}"
            for mine, other in (
                ("mixer_norm", "ln_1"),
                ("ffn_norm", "ln_2"),
                ("mixer.o_proj", "attn.c_proj"),
                ("ffn.up_proj", "mlp.c_fc"),
                ("ffn.down_proj", "mlp.c_proj"),
            ):
                rules += parts(f"{ours}.{mine}", f"{theirs}.{other}", names)
            for name in names:
                projections = [f"{ours}.mixer.{part}_proj.{name}" for part in "qkv"]
                rules.append(fused(projections, f"{theirs}.attn.c_attn.{name}", [config.hidden_size] * 3))
        return rules


# Options of litgpt's Config with the one value under which its blocks are ours.
_LITGPT_FIXED: dict[str, Any] = {
    "parallel_residual": False,
    "shared_attention_norm": False,
    "lm_head_bias": False,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "post_attention_norm": False,
    "post_mlp_norm": False,
    "norm_1": True,
    "norm_2": True,
    "scale_embeddings": False,
    "rope_interleave": False,
    "rope_local_base_freq": None,
    "attention_scores_scalar": None,
    "latent_attention": None,
    "norm_qk_type": "default",
    "n_expert": 0,
}
_LITGPT_DEAD: tuple[str, ...] = (
    "name",
    "hf_config",
    "padding_multiple",
    "n_expert_per_token",
    "gelu_approximate",
    "rope_n_elem",
    "rope_indices",
    "vocab_size",
)
_LITGPT_DEAD += ("n_shared_expert", "n_expert_groups", "n_topk_groups", "n_topk_scores_per_group", "norm_topk_prob")
_LITGPT_DEAD += ("routed_scaling_factor", "first_k_dense_replace", "moe_intermediate_size")
# `rope_adjustments` of Llama 3, and transformers' names.
_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_seq_len": "original_max_position_embeddings",
}


@FOREIGN.register("litgpt")
class LitGPT(Converter):
    """litgpt's Llama-like models."""

    layout_options = ("legacy_qkv",)
    defaults: ClassVar[dict[str, Any]] = {
        "norm_class_name": "LayerNorm",
        "mlp_class_name": "GptNeoxMLP",
        "parallel_residual": True,
        "bias": True,
        "rotary_percentage": 0.25,
    }

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        for key, value in _LITGPT_FIXED.items():
            reader.only(key, [value] if value is not None else [None, False], value)
        reader.dead(*_LITGPT_DEAD, "legacy_qkv")
        hidden, heads, layers = reader.need("n_embd"), reader.need("n_head"), reader.need("n_layer")
        bias, attention_bias = bool(reader.take("bias")), bool(reader.take("attn_bias", False))
        mixer = {"type": "attention", "qkv_bias": bias or attention_bias, "out_bias": bias}
        window, indices = reader.take("sliding_window_size"), reader.take("sliding_window_indices") or [1] * layers
        if window and len(indices) < layers:
            raise ConfigError(f"config.sliding_window_indices: {len(indices)} entries for {layers} layers")
        return {
            "architecture": "llama",
            "vocab_size": reader.take("padded_vocab_size") or reader.need("vocab_size"),
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": reader.take("n_query_groups") or heads,
            "head_dim": reader.take("head_size") or hidden // heads,
            "intermediate_size": reader.need("intermediate_size"),
            "max_position_embeddings": reader.take("block_size", 4096),
            "norm_eps": reader.take("norm_eps", 1e-5),
            "rope_parameters": _litgpt_rope(reader),
            "mlp_bias": bias,
            "qk_norm": bool(reader.take("norm_qk", False)),
            "final_logit_softcapping": reader.take("final_logit_softcapping"),
            "attn_logit_softcapping": reader.take("attention_logit_softcapping"),
            "mixer": [{**mixer, "window": window if on else 0} for on in indices[:layers]] if window else mixer,
        }

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        mixer, options = config.mixer_specs[0]
        effective = mixer.effective(config, options)
        ffn, ffn_options = config.ffn_specs[0]
        rope = config.rope_parameters or {}
        kind, windows = rope.get("rope_type", "default"), [window or 0 for window in config.windows]
        return {
            **{key: value for key, value in _LITGPT_FIXED.items() if value is not None},
            "n_embd": config.hidden_size,
            "n_layer": config.num_hidden_layers,
            "n_head": config.num_attention_heads,
            "n_query_groups": config.num_key_value_heads,
            "head_size": config.head_dim,
            "vocab_size": config.vocab_size,
            "padded_vocab_size": config.vocab_size,
            "block_size": config.max_position_embeddings,
            "intermediate_size": ffn.width(config, ffn_options) if hasattr(ffn, "width") else None,
            "norm_eps": config.norm_eps,
            "norm_qk": effective.get("qk_norm") is not None,
            "rope_base": int(rope.get("rope_theta", 10000)),
            "rotary_percentage": rope.get("partial_rotary_factor", 1.0),
            "rope_condense_ratio": rope["factor"] if kind == "linear" else 1,
            "rope_adjustments": {name: rope.get(ours) for name, ours in _LLAMA3.items()} if kind == "llama3" else None,
            "sliding_window_size": max(windows) or None,
            "sliding_window_indices": [int(window > 0) for window in windows] if any(windows) else None,
            "bias": bool(effective.get("out_bias")),
            "attn_bias": bool(effective.get("qkv_bias")),
            "final_logit_softcapping": config.final_logit_softcapping,
            "attention_logit_softcapping": config.attn_logit_softcapping,
        }

    def rules(self, config: ArchConfig, foreign: dict[str, Any]) -> list[Rule]:
        mixer, options = config.mixer_specs[0]
        effective = mixer.effective(config, options)
        heads, groups, size = effective["heads"]
        linear = ("weight", "bias") if config.mlp_bias else ("weight",)
        rules = [
            same("model.embed_tokens.weight", "transformer.wte.weight"),
            same("model.norm.weight", "transformer.ln_f.weight"),
            same("lm_head.weight", "lm_head.weight"),
        ]
        for index in range(config.num_hidden_layers):
            ours, theirs = f"model.layers.{index}", f"transformer.h.{index}"
            rules += parts(f"{ours}.mixer_norm", f"{theirs}.norm_1") + parts(f"{ours}.ffn_norm", f"{theirs}.norm_2")
            for mine, other in (("gate_proj", "fc_1"), ("up_proj", "fc_2"), ("down_proj", "proj")):
                rules += parts(f"{ours}.ffn.{mine}", f"{theirs}.mlp.{other}", linear)
            rules += parts(
                f"{ours}.mixer.o_proj",
                f"{theirs}.attn.proj",
                ("weight", "bias") if effective["out_bias"] else ("weight",),
            )
            for name in ("q_norm", "k_norm") if effective["qk_norm"] is not None else ():
                rules += parts(f"{ours}.mixer.{name}", f"{theirs}.attn.{name[2:]}_{name[0]}")
            for name in ("weight", "bias") if effective["qkv_bias"] else ("weight",):
                projections = tuple(f"{ours}.mixer.{part}_proj.{name}" for part in "qkv")
                if foreign.get("legacy_qkv"):
                    rules.append(_by_query_group(projections, f"{theirs}.attn.attn.{name}", heads, groups, size))
                else:
                    lengths = [heads * size, groups * size, groups * size]
                    rules.append(fused(projections, f"{theirs}.attn.qkv.{name}", lengths))
        return rules


def _litgpt_rope(reader: ConfigReader) -> dict[str, Any]:
    """transformers' `rope_parameters`."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(reader.take("rope_base", 10000))}
    rotated, ratio = reader.take("rotary_percentage"), reader.take("rope_condense_ratio", 1)
    adjustments = reader.take("rope_adjustments")
    if rotated != 1.0:
        rope["partial_rotary_factor"] = rotated
    if ratio != 1:
        rope |= {"rope_type": "linear", "factor": float(ratio)}
    if adjustments is None:
        return rope
    if ratio != 1 or not isinstance(adjustments, dict) or set(adjustments) != set(_LLAMA3):
        raise ConfigError(
            f"config.rope_adjustments: {adjustments!r} is not supported by litgpt; allowed: null, or a dict of "
            f"{', '.join(_LLAMA3)} with rope_condense_ratio 1"
        )
    return rope | {"rope_type": "llama3", **{ours: adjustments[name] for name, ours in _LLAMA3.items()}}


def _by_query_group(ours: tuple[str, ...], theirs: str, heads: int, groups: int, size: int) -> Rule:
    """Rows ordered by query group: its queries, its key, its value."""
    share = divide(heads, groups, "config.n_query_groups", "n_head")

    def split(tensors: list[Tensor]) -> list[Tensor]:
        grouped = tensors[0].unflatten(0, (groups, share + 2, size))
        pieces = (grouped[:, :share], grouped[:, share : share + 1], grouped[:, share + 1 :])
        return [piece.flatten(0, 2).contiguous() for piece in pieces]

    def join(tensors: list[Tensor]) -> list[Tensor]:
        pieces = [tensor.unflatten(0, (groups, -1, size)) for tensor in tensors]
        return [torch.cat(pieces, dim=1).flatten(0, 2).contiguous()]

    return Rule(ours, (theirs,), split, join)
