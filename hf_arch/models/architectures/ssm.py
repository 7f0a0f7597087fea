"""S4D (Gu et al. 2022): a diagonal state space a channel, the same at every step, and an MLP."""

from ...layers.mixers.ssm import DiagonalStateSpace as DiagonalStateSpace
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "ssm",
    summary="a diagonal linear state space a channel",
    paper="Gu et al. 2022, arXiv 2206.11893",
    tiny={"mixer": {"type": "ssm", "state_size": 8, "kind": "inv", "learn_input": True, "use_glu": True}},
)
class HfaSSMConfig(ArchConfig):
    """64 state numbers a channel, LayerNorm, GELU, no positions (the system's dynamics order tokens)."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    mixer: Component = "ssm"
    ffn: Component = "mlp"
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    hidden_act: str = "gelu"
    position: str = "none"
