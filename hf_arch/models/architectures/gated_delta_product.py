"""Gated DeltaProduct (Siems et al. 2025): several steps of the delta rule a token."""

from ...layers.mixers.gated_delta_product import GatedDeltaProduct as GatedDeltaProduct
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "gated_delta_product",
    summary="several delta-rule steps a token, with a decay",
    paper="Siems et al. 2025, arXiv 2502.10297",
    tiny={
        "num_attention_heads": 2,
        "head_dim": 8,
        "mixer": {"type": "gated_delta_product", "num_v_heads": 4, "num_householder": 3},
    },
)
class HfaGatedDeltaProductConfig(ArchConfig):
    """Six heads with keys of width 256 and values of width 512, two steps a token, RMSNorm, SwiGLU, no positions."""

    hidden_size: int = 2048
    num_hidden_layers: int = 21
    num_attention_heads: int = 6
    head_dim: int | None = 256
    mixer: Component = "gated_delta_product"
    position: str = "none"
