"""HGRN (Qin et al. 2023): a gated linear RNN whose forget gates are bounded from below, more so with depth."""

from ...layers.mixers.hgrn import HierarchicallyGatedRNN as HierarchicallyGatedRNN
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "hgrn",
    summary="an elementwise gated RNN with bounded forget gates",
    paper="Qin et al. 2023, arXiv 2311.04823",
    tiny={"mixer": {"type": "hgrn", "use_short_conv": True, "expand_ratio": 2}},
)
class HfaHGRNConfig(ArchConfig):
    """As many state channels as the model is wide, RMSNorm, SwiGLU, no positions (the gates order tokens)."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    mixer: Component = "hgrn"
    position: str = "none"
