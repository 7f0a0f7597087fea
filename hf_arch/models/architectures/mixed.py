"""Mixed layers: any repeating pattern of registered mixers and FFNs, also a mixer of your own."""

from dataclasses import field

from ...layers.mixers.attention import Attention as Attention
from ...layers.mixers.gla import GatedLinearAttention as GatedLinearAttention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "mixed",
    summary="any per-layer pattern, by default three GLA layers and one of attention",
    paper="Lieber et al. 2024, arXiv 2403.19887; Ren et al. 2024, arXiv 2406.07522",
    tiny={
        "num_hidden_layers": 4,
        "mixer": ["gla", "mamba", {"type": "attention", "window": 8}, "attention"],
    },
)
class HfaMixedConfig(ArchConfig):
    """Three GLA layers, then one of attention, repeated."""

    hidden_size: int = 384
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    mixer: Component = field(default_factory=lambda: ["gla*3", "attention"])
