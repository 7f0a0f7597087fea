"""Stick-breaking attention (Tan et al. 2024): no softmax and no positions."""

from ...layers.mixers.stickbreaking import StickBreakingAttention as StickBreakingAttention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "stickbreaking",
    summary="attention by breaking a stick from the nearest key on, no softmax",
    paper="Tan et al. 2024, arXiv 2410.17980",
    tiny={"num_key_value_heads": 2, "qk_norm": True, "attention_bias": True},
)
class HfaStickBreakingConfig(ArchConfig):
    """A Llama-like block around the mixer."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mixer: Component = "stickbreaking"
    position: str = "none"
