"""Mixture of experts (Jiang et al. 2024): Llama's block, each token's FFN chosen from several."""

from ...layers.ffns.moe import MixtureOfExperts as MixtureOfExperts
from ...layers.mixers.attention import Attention as Attention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "moe",
    summary="Llama's block with a router and several FFNs, of which each token passes some",
    paper="Jiang et al. 2024, arXiv 2401.04088",
    tiny={
        "num_key_value_heads": 2,
        "ffn": [
            {"type": "moe", "num_experts": 4, "intermediate_size": 24, "z_loss_coef": 1e-3},
            {
                "type": "moe",
                "num_experts": 8,
                "intermediate_size": 16,
                "gated": False,
                "hidden_act": "gelu",
                "num_shared_experts": 1,
                "router": "sigmoid",
                "score_bias": True,
                "num_groups": 4,
                "groups_per_token": 2,
                "routed_scaling_factor": 1.5,
            },
        ],
    },
)
class HfaMoEConfig(ArchConfig):
    """Eight SwiGLU experts, two a token, with the load-balancing loss in training."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    ffn: Component = "moe"
    output_router_logits: bool = False
