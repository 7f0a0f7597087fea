"""MoBA (Lu et al. 2025): each query head chooses blocks of keys by their mean."""

from ...layers.mixers.moba import BlockMixtureAttention as BlockMixtureAttention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "moba",
    summary="attention to the own block and the best past ones",
    paper="Lu et al. 2025, arXiv 2502.13189",
    tiny={
        "mixer": {"type": "moba", "block_size": 5, "topk": 3, "use_output_gate": True},
        "num_key_value_heads": 2,
        "qk_norm": True,
    },
)
class HfaMoBAConfig(ArchConfig):
    """A Llama-like block around the mixer."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mixer: Component = "moba"
