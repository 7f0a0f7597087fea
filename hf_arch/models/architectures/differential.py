"""Differential transformer (Ye et al. 2024): the difference of two softmax maps, normed by head."""

from ...layers.mixers.differential import DifferentialAttention as DifferentialAttention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "differential",
    summary="the difference of two softmax maps",
    paper="Ye et al. 2024, arXiv 2410.05258",
    tiny={"num_key_value_heads": 2},
)
class HfaDifferentialConfig(ArchConfig):
    """A Llama-like block around the mixer."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mixer: Component = "differential"
