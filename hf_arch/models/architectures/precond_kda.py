"""Preconditioned KDA: Kimi Delta Attention that writes with a preconditioned key."""

from ...layers.mixers.precond_kda import PrecondKDA as PrecondKDA
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "precond_kda",
    summary="KDA with a preconditioned written key",
    paper="arXiv 2604.21100",
    tiny={
        "num_attention_heads": 2,
        "head_dim": 8,
        "mixer": {"type": "precond_kda", "num_v_heads": 4, "allow_neg_eigval": True, "lower_bound": -5},
    },
)
class HfaPrecondKDAConfig(ArchConfig):
    """Sixteen heads with keys and values of width 128, RMSNorm, SwiGLU, no positions."""

    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    head_dim: int | None = 128
    mixer: Component = "precond_kda"
    position: str = "none"
