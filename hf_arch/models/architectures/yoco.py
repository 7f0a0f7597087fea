"""You Only Cache Once (Sun et al. 2024): a lower half of constant state, and an upper half that attends to keys and
values made once in the middle.

The layer in the middle (`kv_builder`) makes the shared keys and values and writes nothing to the stream. `init: yoco`
takes the initial values of the source.
"""

from typing import Any

from ...layers.mixers.gated_delta_net import GatedDeltaNet as GatedDeltaNet
from ...layers.mixers.gated_retention import GatedRetention as GatedRetention
from ...layers.mixers.shared_kv import CrossAttention as CrossAttention
from ...layers.mixers.shared_kv import KVBuilder as KVBuilder
from ..configuration import ArchConfig, Component
from .declare import architecture


@architecture(
    "yoco",
    summary="layers of constant state, then attention to keys and values that are made and cached once",
    paper="Sun et al. 2024, arXiv 2405.05254",
    tiny={
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "mixer": [
            "gated_retention",
            {"type": "kv_builder", "rope_frequencies": "inclusive"},
            {"type": "cross_attention", "qk_norm": True, "rope_frequencies": "inclusive"},
            {"type": "cross_attention", "rope_frequencies": "inclusive"},
        ],
    },
)
class HfaYocoConfig(ArchConfig):
    """22 layers: ten of Gated DeltaNet, the shared keys and values, eleven of attention to them; RMSNorm, SwiGLU.

    Args:
        mixer, ffn: of the lower half, where it is one component; a pattern is that of all layers.
        embedding_multiplier: None is sqrt(hidden_size).
    """

    hidden_size: int = 2048
    num_hidden_layers: int = 22
    num_attention_heads: int = 32
    mixer: Component = "gated_delta_net"
    position: str = "none"
    embedding_multiplier: float | int | None = None  # type: ignore[assignment]

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.mixer, list):
            lower = (self.num_hidden_layers - 1) // 2
            upper = self.num_hidden_layers - 1 - lower
            self.mixer = [*[self.mixer] * lower, "kv_builder", *["cross_attention"] * upper]
        if not isinstance(self.ffn, list):
            ffns = [self.ffn] * self.num_hidden_layers
            builders = [index for index, mixer in enumerate(self.mixer) if "kv_builder" in (mixer, _type_of(mixer))]
            self.ffn = ["none" if index in builders else ffn for index, ffn in enumerate(ffns)]
        if self.embedding_multiplier is None:
            self.embedding_multiplier = self.hidden_size**0.5
        super().__post_init__(**kwargs)


def _type_of(mixer: Any) -> Any:
    return mixer.get("type") if isinstance(mixer, dict) else None
