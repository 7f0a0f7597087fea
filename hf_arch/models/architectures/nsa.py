"""Native sparse attention (Yuan et al. 2025): compressed, selected and windowed keys, gated by head."""

from ...layers.mixers.nsa import NativeSparseAttention as NativeSparseAttention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "nsa",
    summary="block-compressed, block-selected and windowed attention, gated",
    paper="Yuan et al. 2025, arXiv 2502.11089",
    tiny={"mixer": {"type": "nsa", "block_size": 4, "block_counts": 4, "window": 6}, "num_key_value_heads": 2},
)
class HfaNSAConfig(ArchConfig):
    """A Llama-like block around the mixer."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mixer: Component = "nsa"
