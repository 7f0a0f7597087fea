"""The `team` preset: a Llama-like model (RoPE, RMSNorm, SwiGLU, pre-norm) at a small research size."""

from ...layers.mixers.attention import Attention as Attention
from ..configuration import ArchConfig
from .declare import architecture


@architecture(
    "team",
    summary="preset: RoPE, RMSNorm, SwiGLU, pre-norm, small",
    paper="components of Touvron et al. 2023, arXiv 2302.13971",
    tiny={},
)
class HfaTeamConfig(ArchConfig):
    """A small Llama-like preset."""

    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
