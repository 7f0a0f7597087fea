"""Linear attention (Katharopoulos et al. 2020): a matrix state without decay, and a choice of feature maps."""

from ...layers.mixers.linear_attn import LinearAttention as LinearAttention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "linear_attn",
    summary="linear attention without decay, any feature map",
    paper="Katharopoulos et al. 2020, arXiv 2006.16236",
    tiny={
        "mixer": {
            "type": "linear_attn",
            "feature_map": "hedgehog",
            "norm_q": True,
            "norm_k": True,
            "normalize": True,
        },
        "num_key_value_heads": 2,
    },
)
class HfaLinearAttentionConfig(ArchConfig):
    """Four heads with learned product feature maps, RMSNorm, SwiGLU, no positions."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    mixer: Component = "linear_attn"
    position: str = "none"
