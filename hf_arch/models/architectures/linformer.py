"""Linformer (Wang et al. 2020) made causal: exact attention inside blocks, learned summaries of finished ones."""

from ...layers.mixers.linformer import CausalLinformer as CausalLinformer
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "linformer",
    summary="attention inside blocks and to learned summaries of all finished blocks",
    paper="Wang et al. 2020, arXiv 2006.04768",
    tiny={
        "num_key_value_heads": 2,
        "mixer": [
            {"type": "linformer", "block_size": 4, "num_slots": 2},
            {"type": "linformer", "block_size": 4, "num_slots": 3, "sharing": "layers"},
        ],
    },
)
class HfaLinformerConfig(ArchConfig):
    """Llama's block with 16 summaries for every 128 tokens."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mixer: Component = "linformer"
