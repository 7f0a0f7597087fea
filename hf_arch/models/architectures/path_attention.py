"""PaTH (Yang et al. 2025): softmax attention with data-dependent positions by accumulated reflections."""

from ...layers.mixers.path_attention import PathAttention as PathAttention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "path_attention",
    summary="softmax attention with positions by accumulated reflections",
    paper="Yang et al. 2025, arXiv 2505.16381",
    tiny={"mixer": {"type": "path_attention", "forget_gate": True}, "num_key_value_heads": 2},
)
class HfaPathAttentionConfig(ArchConfig):
    """A Llama-like block around the mixer."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mixer: Component = "path_attention"
    position: str = "none"
