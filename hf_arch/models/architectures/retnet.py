"""RetNet (Sun et al. 2023): retention, a matrix state with one fixed decay a head, rotary queries and keys."""

from typing import Any

from ...layers.mixers.retnet import Retention as Retention
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "retnet",
    summary="retention: a matrix state with one fixed decay a head",
    paper="Sun et al. 2023, arXiv 2307.08621",
    tiny={"num_key_value_heads": 2},
)
class HfaRetNetConfig(ArchConfig):
    """Eight heads, values of double width, SwiGLU of width 2D."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    mixer: Component = "retnet"
    position: str = "none"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 256 * -(
                -int(4 * self.hidden_size / 3) // 256
            )  # hidden ratio 2, by GLU's two thirds
        super().__post_init__(**kwargs)
