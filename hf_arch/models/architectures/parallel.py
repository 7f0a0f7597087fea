"""Mixers side by side in every layer (Falcon-H1, Hymba): attention and Mamba-2 of one input, their outputs added."""

from dataclasses import field

from ...layers.mixers.attention import Attention as Attention
from ...layers.mixers.mamba2 import StateSpaceDual as StateSpaceDual
from ...layers.mixers.parallel import ParallelMixers as ParallelMixers
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "parallel",
    summary="attention and Mamba-2 side by side in every layer",
    paper="Zuo et al. 2025, arXiv 2507.22448; Dong et al. 2024, arXiv 2411.13676",
    tiny={
        "num_key_value_heads": 2,
        "mixer": {
            "type": "parallel",
            "branches": [
                {"type": "attention", "window": 8},
                {"type": "mamba2", "head_dim": 16, "state_size": 8},
                "gla",
            ],
            "input_scales": [1.0, 0.5, 1.5],
            "output_scales": [0.5, 0.25, 1.0],
            "branch_norm": True,
        },
    },
)
class HfaParallelConfig(ArchConfig):
    """Attention and a Mamba-2 of 128 rows of state, added; RMSNorm, SwiGLU."""

    hidden_size: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    mixer: Component = field(default_factory=lambda: {"type": "parallel"})
