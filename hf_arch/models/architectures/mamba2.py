"""Mamba-2 (Dao & Gu 2024): selective state space with one decay a head, no attention, no FFN.

The class names avoid the word: transformers' generation looks for it in class names and then expects another cache
argument.
"""

from typing import ClassVar

from ...layers.mixers.mamba2 import StateSpaceDual as StateSpaceDual
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "mamba2",
    summary="selective state space with one decay a head and a matrix state, no FFN",
    paper="Dao & Gu 2024, arXiv 2405.21060",
    tiny={
        "mixer": {
            "type": "mamba2",
            "head_dim": 16,
            "state_size": 8,
            "n_groups": 2,
            "proj_bias": True,
            "D_has_hdim": True,
        }
    },
)
class HfaStateSpaceDualConfig(ArchConfig):
    """The published 130M model: 24 blocks of the mixer alone, heads of width 64, 128 numbers of state a channel."""

    frozen_pad_embedding: ClassVar[bool] = False

    hidden_size: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 1
    mixer: Component = "mamba2"
    ffn: Component = "none"
    norm_eps: float = 1e-5
    position: str = "none"
    tie_word_embeddings: bool = True
