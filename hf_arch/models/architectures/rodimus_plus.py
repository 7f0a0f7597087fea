"""Rodimus+ (He et al. 2024): Rodimus and shared-key attention in turn, with two-hop residuals.

One block of the paper is two layers here: Rodimus alone, then attention and a feed-forward.
"""

from dataclasses import field
from typing import Any

from ...layers.mixers.rodimus import Rodimus as Rodimus
from ...layers.mixers.shared_key import SharedKeyAttention as SharedKeyAttention
from ...layers.streams.two_hop import TwoHopStream as TwoHopStream
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "rodimus_plus",
    summary="a wide head with a temperature, and windowed attention with one key for all heads, in turn",
    paper="He et al. 2024, arXiv 2410.06577",
    tiny={
        "mixer": [
            {"type": "rodimus", "expand_ratio": 8, "input_gate_low_rank": 4},
            {"type": "shared_key", "window": 6, "qk_norm": True},
        ],
    },
)
class HfaRodimusPlusConfig(ArchConfig):
    """48 layers, half of Rodimus with 64 rows of state, half of attention over 2048 tokens with SwiGLU; RMSNorm."""

    hidden_size: int = 2048
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    mixer: Component = field(default_factory=lambda: ["rodimus", {"type": "shared_key", "window": 2048}])
    ffn: Component = field(default_factory=lambda: ["none", "glu"])
    stream: str | dict[str, Any] = "two_hop"
    norm_eps: float = 1e-5
    position: str = "none"
    tie_word_embeddings: bool = True
