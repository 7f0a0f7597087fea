"""Forgetting Transformer (Lin et al. 2025): softmax attention whose scores decay by gates, without positions."""

from ...layers.mixers.forgetting_transformer import ForgettingAttention as ForgettingAttention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "forgetting_transformer",
    summary="softmax attention whose scores decay by forget gates, no positions",
    paper="Lin et al. 2025, arXiv 2503.02130",
    tiny={
        "mixer": {"type": "forgetting_transformer", "output_gate": "elementwise"},
        "num_key_value_heads": 2,
        "qk_norm": True,
    },
)
class HfaForgettingTransformerConfig(ArchConfig):
    """A Llama-like block around the mixer."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mixer: Component = "forgetting_transformer"
    position: str = "none"
