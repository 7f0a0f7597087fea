"""Mamba (Gu & Dao 2023): selective state-space blocks, no attention, no FFN.

The class names avoid the word: transformers' generation looks for it in class names and then expects another cache
argument.
"""

from typing import ClassVar

from ...layers.mixers.mamba import SelectiveStateSpace as SelectiveStateSpace
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "mamba",
    summary="selective state space: N numbers a channel, no attention, no FFN",
    paper="Gu & Dao 2023, arXiv 2312.00752",
    tiny={"num_hidden_layers": 2},
)
class HfaSelectiveSSMConfig(ArchConfig):
    """Mamba's published defaults: 48 blocks of the mixer alone."""

    frozen_pad_embedding: ClassVar[bool] = False

    hidden_size: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 1
    mixer: Component = "mamba"
    ffn: Component = "none"
    norm_eps: float = 1e-5
    position: str = "none"
    tie_word_embeddings: bool = True
