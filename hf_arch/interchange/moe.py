"""transformers' mixtures of experts: mixtral and deepseek_v3, with packed experts or (as in files) single ones."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..layers.ffns.moe import MixtureOfExperts
from ..models.configuration import ArchConfig
from .base import FOREIGN
from .directions import layers_of, options_to_ours, options_to_theirs
from .reader import ConfigReader
from .table import Always, Entry, Layer, Modules, Option, Tensors, Unused, only, under
from .transformers_dense import ATTENTION, BIAS, BLOCKS, HEADS, NORMS, LlamaBlocks, attention_bias

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.weight")
_EXPERT_PARTS = {"w1": "gate", "w2": "down", "w3": "up", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


ROUTER_LOGITS = Option(
    "output_router_logits",
    default=False,
    write=lambda layer: getattr(layer.config, "output_router_logits", False),
)


def has_experts(layer: Layer) -> bool:
    return layer.ffn_class is MixtureOfExperts


EXPERTS: tuple[Tensors, ...] = under(
    "ffn",
    "mlp",
    Tensors(
        "router.weight experts.gate_up_proj experts.down_proj",
        "gate.weight experts.gate_up_proj experts.down_proj",
        when=has_experts,
    ),
)


class MoEConverter(LlamaBlocks):
    """What the two share: Llama's blocks, packed experts."""

    architecture = "moe"

    def current_names(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        single: dict[str, dict[str, dict[int, Tensor]]] = {}
        for key, tensor in state_dict.items():
            key = key.replace(".block_sparse_moe.", ".mlp.")
            match = _EXPERT.fullmatch(key)
            if match is None or match[3] not in _EXPERT_PARTS:
                result[key] = tensor
            else:
                single.setdefault(match[1], {}).setdefault(_EXPERT_PARTS[match[3]], {})[int(match[2])] = tensor
        for prefix, kinds in single.items():
            stacked = {kind: torch.stack([rows[index] for index in sorted(rows)]) for kind, rows in kinds.items()}
            if {"gate", "up"} <= stacked.keys():
                result[f"{prefix}.gate_up_proj"] = torch.cat((stacked["gate"], stacked["up"]), 1)
            if "down" in stacked:
                result[f"{prefix}.down_proj"] = stacked["down"]
        return result


@FOREIGN.register("mixtral")
class Mixtral(MoEConverter):
    """`MixtralForCausalLM`. Its balancing loss is added in training whether or not router logits are asked for, and
    in evaluation where the config asks for them."""

    defaults: ClassVar[dict[str, Any]] = {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
    }
    model_options = (
        *BLOCKS,
        *HEADS,
        only("router_jitter_noise", 0.0),
        Option("sliding_window"),
        ROUTER_LOGITS,
    )
    ffn = "moe"
    ffn_options = (
        Option("num_local_experts", "num_experts", 8),
        Option("num_experts_per_tok", default=2),
        Option("router_aux_loss_coef", "aux_loss_coef", 0.001),
    )
    layer_tensors = (NORMS, *ATTENTION, *EXPERTS)


def _low_rank(layer: Layer) -> bool:
    return layer.mixer.q_lora_rank is not None


_DEEPSEEK_EXPERTS: tuple[Entry, ...] = (
    Option("n_routed_experts", "num_experts", 256),
    Option("num_experts_per_tok", default=8),
    Option("moe_intermediate_size", "intermediate_size", 2048, write=lambda layer: layer.ffn_width),
    Option("n_shared_experts", "num_shared_experts", 1),
    Always("router", "sigmoid"),
    Option("norm_topk_prob", "normalize_weights", True),
    Option("routed_scaling_factor", default=2.5),
    Option("n_group", "num_groups", 8),
    Option("topk_group", "groups_per_token", 4),
    Always("aux_loss_coef", 0.0),
    Always("score_bias", True),
)


LATENT: tuple[Tensors, ...] = under(
    "mixer",
    "self_attn",
    Modules("kv_a_proj o_proj", "kv_a_proj_with_mqa o_proj", bias=attention_bias),
    Modules("kv_norm kv_b_proj", "kv_a_layernorm kv_b_proj"),
    Modules("q_proj", when=lambda layer: layer.mixer.q_lora_rank is None),
    Modules("q_a_proj", when=_low_rank, bias=attention_bias),
    Modules("q_norm q_b_proj", "q_a_layernorm q_b_proj", when=_low_rank),
)
DEEPSEEK_FFN: tuple[Tensors, ...] = under(
    "ffn",
    "mlp",
    Modules("gate_proj up_proj down_proj", when=lambda layer: not has_experts(layer)),
    Tensors("router.score_bias", "gate.e_score_correction_bias", when=has_experts),
    Modules(
        "shared_experts.gate_proj shared_experts.up_proj shared_experts.down_proj",
        when=lambda layer: has_experts(layer) and layer.ffn.num_shared_experts,
    ),
)


@FOREIGN.register("deepseek_v3")
class DeepSeekV3(MoEConverter):
    """`DeepseekV3ForCausalLM`: latent attention, dense first layers, then experts chosen by biased sigmoid scores."""

    defaults: ClassVar[dict[str, Any]] = {"max_position_embeddings": 4096}
    mixer = "mla"
    model_options = (
        *BLOCKS,
        only("scoring_func", "sigmoid"),
        only("topk_method", "noaux_tc"),
        only("moe_layer_freq", 1),
        Unused("qk_head_dim num_local_experts ep_size seq_aux aux_loss_alpha num_nextn_predict_layers num_mtp_layers"),
        Option(
            "num_key_value_heads",
            default=lambda reader: reader.need("num_attention_heads"),
            null=True,
            allowed=lambda reader: (reader.need("num_attention_heads"), None),
            read=lambda _, reader: reader.need("num_attention_heads"),
            write=lambda layer: layer.config.num_attention_heads,
        ),
        Always("head_dim", None),
        BIAS,
        ROUTER_LOGITS,
    )
    mixer_options = (
        Option("q_lora_rank", default=1536),
        Option("kv_lora_rank", default=512),
        Option("qk_nope_head_dim", default=128),
        Option("qk_rope_head_dim", default=64),
        Option("head_dim", None, write=lambda layer: layer.mixer.qk_rope_head_dim),
        Option("v_head_dim", default=128),
        Option("rope_interleave", default=True),
        Always("latent_norm_eps", 1e-6),  # whatever the config says
    )
    layer_tensors = (
        NORMS,
        *LATENT,
        *EXPERTS,
        *DEEPSEEK_FFN,
    )

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        values, dense = super().config_to_ours(reader), reader.take("first_k_dense_replace", 3) or 0
        experts = {"type": "moe", **options_to_ours(_DEEPSEEK_EXPERTS, reader)}
        layers = range(values["num_hidden_layers"])
        return {**values, "ffn": [dict(experts) if index >= dense else {"type": "glu"} for index in layers]}

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        layers = layers_of(config)
        experts = next((layer for layer in layers if has_experts(layer)), None)
        theirs = {
            **super().config_to_theirs(config),
            "first_k_dense_replace": experts.index if experts else len(layers),
        }
        return {**theirs, **options_to_theirs(_DEEPSEEK_EXPERTS, experts, experts.ffn)} if experts else theirs
