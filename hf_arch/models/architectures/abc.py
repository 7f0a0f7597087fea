"""ABC (Peng et al. 2021): softmax attention to slots that are running averages of keys and values."""

from ...layers.mixers.abc import BoundedMemoryAttention as BoundedMemoryAttention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "abc",
    summary="softmax attention to memory slots of running averages",
    paper="Peng et al. 2021, arXiv 2110.02488",
    tiny={"mixer": {"type": "abc", "num_slots": 6, "use_short_conv": True}, "num_key_value_heads": 2},
)
class HfaABCConfig(ArchConfig):
    """Four heads of 64 slots with rotary keys of half width, RMSNorm, SwiGLU."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    mixer: Component = "abc"
    position: str = "none"
