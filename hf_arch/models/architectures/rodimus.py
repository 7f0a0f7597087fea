"""Rodimus (He et al. 2024): blocks of one mixer whose gates have a temperature, no FFN."""

from ...layers.mixers.rodimus import Rodimus as Rodimus
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "rodimus",
    summary="one wide head of linear attention whose gates have a temperature, no FFN",
    paper="He et al. 2024, arXiv 2410.06577",
    tiny={"mixer": {"type": "rodimus", "expand_ratio": 8, "input_gate_low_rank": 4}},
)
class HfaRodimusConfig(ArchConfig):
    """Blocks of the mixer alone with 64 rows of state, RMSNorm, no positions (the gates order tokens)."""

    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_attention_heads: int = 1
    mixer: Component = "rodimus"
    ffn: Component = "none"
    norm_eps: float = 1e-5
    position: str = "none"
    tie_word_embeddings: bool = True
