"""transformers' mixtures of experts: mixtral and deepseek_v3, with packed experts or (as in files) single ones."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..layers.ffns.moe import MixtureOfExperts
from ..layers.mixers.mla import LatentAttention
from ..models.configuration import ArchConfig
from .base import FOREIGN, Rule, parts, same
from .reader import ConfigReader
from .transformers_dense import Llama

_LATENT_NORM_EPS = 1e-6  # DeepSeek's latent norms have this epsilon whatever the config says
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.weight")
_EXPERT_PARTS = {"w1": "gate", "w2": "down", "w3": "up", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


class MoEConverter(Llama):
    """What the two share: Llama's blocks, packed experts."""

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

    def expert_rules(self, index: int) -> list[Rule]:
        """The router and the experts of one layer."""
        layer = f"model.layers.{index}"
        names = (("router.weight", "gate.weight"), ("experts.gate_up_proj",) * 2, ("experts.down_proj",) * 2)
        return [same(f"{layer}.ffn.{ours}", f"{layer}.mlp.{theirs}") for ours, theirs in names]


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

    def own_options(self, reader: ConfigReader) -> dict[str, Any]:
        reader.only("router_jitter_noise", [0.0, 0], 0.0)
        return {
            "architecture": "moe",
            "sliding_window": reader.take("sliding_window"),
            "output_router_logits": reader.take("output_router_logits", False),
            "ffn": {
                "type": "moe",
                "num_experts": reader.take("num_local_experts", 8),
                "num_experts_per_tok": reader.take("num_experts_per_tok", 2),
                "aux_loss_coef": reader.take("router_aux_loss_coef", 0.001),
            },
        }

    def their_options(self, config: ArchConfig) -> dict[str, Any]:
        options = _first_moe(config)[1]
        if options is None:
            raise ConfigError("ffn: no layer is 'moe'; a mixtral checkpoint has experts in every layer")
        return {
            "sliding_window": config.sliding_window,
            "output_router_logits": getattr(config, "output_router_logits", False),
            "num_local_experts": options.num_experts,
            "num_experts_per_tok": options.num_experts_per_tok,
            "router_aux_loss_coef": options.aux_loss_coef,
        }

    def feed_forward_rules(self, config: ArchConfig, index: int, names: tuple[str, ...]) -> list[Rule]:
        return self.expert_rules(index)


@FOREIGN.register("deepseek_v3")
class DeepSeekV3(MoEConverter):
    """`DeepseekV3ForCausalLM`: latent attention, dense first layers, then experts chosen by biased sigmoid scores."""

    defaults: ClassVar[dict[str, Any]] = {"max_position_embeddings": 4096}

    def own_options(self, reader: ConfigReader) -> dict[str, Any]:
        reader.only("scoring_func", ["sigmoid"], "sigmoid")
        reader.only("topk_method", ["noaux_tc"], "noaux_tc")
        reader.only("moe_layer_freq", [1], 1)
        reader.dead("head_dim", "qk_head_dim", "num_local_experts", "ep_size", "seq_aux", "aux_loss_alpha")
        reader.dead("num_nextn_predict_layers", "num_mtp_layers")
        heads, layers = reader.need("num_attention_heads"), reader.need("num_hidden_layers")
        reader.only("num_key_value_heads", [heads, None], heads)
        dense = min(reader.take("first_k_dense_replace", 3) or 0, layers)
        experts = {
            "type": "moe",
            "num_experts": reader.take("n_routed_experts", 256),
            "num_experts_per_tok": reader.take("num_experts_per_tok", 8),
            "intermediate_size": reader.take("moe_intermediate_size", 2048),
            "num_shared_experts": reader.take("n_shared_experts", 1),
            "router": "sigmoid",
            "normalize_weights": reader.take("norm_topk_prob", True),
            "routed_scaling_factor": reader.take("routed_scaling_factor", 2.5),
            "num_groups": reader.take("n_group", 8),
            "groups_per_token": reader.take("topk_group", 4),
            "aux_loss_coef": 0.0,
            "score_bias": True,
        }
        return {
            "architecture": "moe",
            "head_dim": None,
            "attention_bias": reader.take("attention_bias", False),
            "output_router_logits": reader.take("output_router_logits", False),
            "mixer": {
                "type": "mla",
                "q_lora_rank": reader.take("q_lora_rank", 1536),
                "kv_lora_rank": reader.take("kv_lora_rank", 512),
                "qk_nope_head_dim": reader.take("qk_nope_head_dim", 128),
                "qk_rope_head_dim": reader.take("qk_rope_head_dim", 64),
                "v_head_dim": reader.take("v_head_dim", 128),
                "rope_interleave": reader.take("rope_interleave", True),
                "latent_norm_eps": _LATENT_NORM_EPS,
            },
            "ffn": [dict(experts) if index >= dense else {"type": "glu"} for index in range(layers)],
        }

    def their_options(self, config: ArchConfig) -> dict[str, Any]:
        mixer, attention = config.mixer_specs[0]
        dense, experts = _first_moe(config)
        if not issubclass(mixer, LatentAttention):
            raise ConfigError("mixer: the layers are not 'mla', which a deepseek_v3 checkpoint needs")
        sizes = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        theirs = {
            **{name: getattr(attention, name) for name in sizes},
            "rope_interleave": attention.rope_interleave,
            "head_dim": attention.qk_rope_head_dim,
            "num_key_value_heads": config.num_attention_heads,
            "attention_bias": config.attention_bias,
            "first_k_dense_replace": dense,
            "output_router_logits": getattr(config, "output_router_logits", False),
        }
        if experts is None:
            return theirs
        return {
            **theirs,
            "n_routed_experts": experts.num_experts,
            "num_experts_per_tok": experts.num_experts_per_tok,
            "moe_intermediate_size": MixtureOfExperts.width(config, experts),
            "n_shared_experts": experts.num_shared_experts,
            "norm_topk_prob": experts.normalize_weights,
            "routed_scaling_factor": experts.routed_scaling_factor,
            "n_group": experts.num_groups,
            "topk_group": experts.groups_per_token,
        }

    def attention_rules(self, config: ArchConfig, index: int) -> list[Rule]:
        ours, theirs = f"model.layers.{index}.mixer", f"model.layers.{index}.self_attn"
        names = ("weight", "bias") if config.attention_bias else ("weight",)
        rules = parts(f"{ours}.kv_a_proj", f"{theirs}.kv_a_proj_with_mqa", names)
        rules += parts(f"{ours}.kv_norm", f"{theirs}.kv_a_layernorm") + parts(
            f"{ours}.kv_b_proj", f"{theirs}.kv_b_proj"
        )
        rules += parts(f"{ours}.o_proj", f"{theirs}.o_proj", names)
        if config.mixer_specs[index][1].q_lora_rank is None:
            return rules + parts(f"{ours}.q_proj", f"{theirs}.q_proj")
        rules += parts(f"{ours}.q_a_proj", f"{theirs}.q_a_proj", names)
        return (
            rules + parts(f"{ours}.q_norm", f"{theirs}.q_a_layernorm") + parts(f"{ours}.q_b_proj", f"{theirs}.q_b_proj")
        )

    def feed_forward_rules(self, config: ArchConfig, index: int, names: tuple[str, ...]) -> list[Rule]:
        ffn, options = config.ffn_specs[index]
        if ffn is not MixtureOfExperts:
            return super().feed_forward_rules(config, index, names)
        layer = f"model.layers.{index}"
        rules = self.expert_rules(index)
        rules.append(same(f"{layer}.ffn.router.score_bias", f"{layer}.mlp.gate.e_score_correction_bias"))
        for name in ("gate_proj", "up_proj", "down_proj") if options.num_shared_experts else ():
            rules += parts(f"{layer}.ffn.shared_experts.{name}", f"{layer}.mlp.shared_experts.{name}")
        return rules


def _first_moe(config: ArchConfig) -> tuple[int, Any]:
    """(index, options) of the first layer with experts; (number of layers, None) where there is none."""
    specs = enumerate(config.ffn_specs)
    found = ((index, options) for index, (ffn, options) in specs if ffn is MixtureOfExperts)
    return next(found, (config.num_hidden_layers, None))
