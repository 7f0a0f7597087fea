"""Based (Arora et al. 2024): linear attention with a Taylor feature map, in turn with short-window attention."""

from dataclasses import field

from ...layers.mixers.attention import Attention as Attention
from ...layers.mixers.based import BasedLinearAttention as BasedLinearAttention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "based",
    summary="Taylor linear attention in turn with short-window attention",
    paper="Arora et al. 2024, arXiv 2402.18668",
    tiny={
        "mixer": [{"type": "based", "feature_dim": 4}, {"type": "attention", "window": 8}],
        "num_key_value_heads": 2,
    },
)
class HfaBasedConfig(ArchConfig):
    """Twelve heads; every second layer is softmax attention to the last 64 tokens, with RoPE; RMSNorm, SwiGLU."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mixer: Component = field(default_factory=lambda: ["based", {"type": "attention", "window": 64}])
