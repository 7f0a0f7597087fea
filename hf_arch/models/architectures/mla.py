"""Multi-head latent attention (DeepSeek-V2, 2024): keys and values of all heads come from one small cached vector."""

from ...layers.mixers.mla import LatentAttention as LatentAttention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "mla",
    summary="attention whose cache is one latent vector a token, shared by all heads",
    paper="DeepSeek-AI 2024, arXiv 2405.04434",
    tiny={
        "mixer": {
            "type": "mla",
            "q_lora_rank": 12,
            "kv_lora_rank": 20,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 12,
            "rope_interleave": True,
        }
    },
)
class HfaMLAConfig(ArchConfig):
    """Sixteen heads of 128 + 64 features over latents of 512 numbers, RMSNorm, SwiGLU."""

    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    mixer: Component = "mla"
