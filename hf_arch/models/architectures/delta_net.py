"""DeltaNet (Yang et al. 2024): linear attention whose state is corrected towards each new value (the delta rule)."""

from ...layers.mixers.delta_net import DeltaNet as DeltaNet
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "delta_net",
    summary="delta rule: linear attention that replaces what it stored",
    paper="Yang et al. 2024, arXiv 2406.06484",
    tiny={
        "mixer": {"type": "delta_net", "use_output_gate": True, "allow_neg_eigval": True},
        "num_key_value_heads": 2,
    },
)
class HfaDeltaNetConfig(ArchConfig):
    """Eight heads with short convolutions, RMSNorm, SwiGLU, no positions."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    mixer: Component = "delta_net"
    position: str = "none"
