"""GSA (Zhang et al. 2024): softmax attention to a bounded number of slots that forget."""

from ...layers.mixers.gsa import GatedSlotAttention as GatedSlotAttention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "gsa",
    summary="softmax attention to memory slots that forget",
    paper="Zhang et al. 2024, arXiv 2409.07146",
    tiny={
        "mixer": {"type": "gsa", "num_slots": 6, "feature_map": "t2r", "use_short_conv": True},
        "num_key_value_heads": 2,
    },
)
class HfaGSAConfig(ArchConfig):
    """Four heads of 64 slots, RMSNorm, SwiGLU, no positions (the gates order tokens)."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    mixer: Component = "gsa"
    position: str = "none"
