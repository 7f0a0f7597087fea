"""Griffin (De et al. 2024; RecurrentGemma): gated linear recurrences with a layer of local attention now and then."""

from dataclasses import field
from typing import Any

from ...layers.mixers.attention import Attention as Attention
from ...layers.mixers.rg_lru import RealGatedLRU as RealGatedLRU
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "griffin",
    summary="gated linear recurrences, every third layer of attention over a window",
    paper="De et al. 2024, arXiv 2402.19427",
    tiny={"num_key_value_heads": 1, "sliding_window": 8, "mixer": ["rg_lru", "attention"]},
)
class HfaGriffinConfig(ArchConfig):
    """Two RG-LRU layers, then attention with one key head and half of the head rotated, repeated; RMSNorm, GeGLU.

    Args:
        embedding_multiplier: None is sqrt(hidden_size).
    """

    hidden_size: int = 1024
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 1
    mixer: Component = field(default_factory=lambda: ["rg_lru*2", "attention"])
    sliding_window: int | None = 2048
    norm: str = "rmsnorm_offset"
    hidden_act: str = "gelu_tanh"
    rope_parameters: dict[str, Any] | None = field(
        default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    )
    embedding_multiplier: float | int | None = None  # type: ignore[assignment]
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.embedding_multiplier is None:
            self.embedding_multiplier = self.hidden_size**0.5
        super().__post_init__(**kwargs)
