"""The `hybrid` preset: RoPE with LayerNorm and a GELU MLP of 4x, pre-norm."""

from ...layers.mixers.attention import Attention as Attention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "hybrid",
    summary="preset: RoPE, LayerNorm, GELU MLP, pre-norm, small",
    paper="components of Radford et al. 2019 and Su et al. 2021",
    tiny={},
)
class HfaHybridConfig(ArchConfig):
    """Between GPT-2 and Llama."""

    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    ffn: Component = "mlp"
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    hidden_act: str = "gelu"
