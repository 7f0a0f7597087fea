"""FLA's multi-head latent attention."""

from __future__ import annotations

from typing import Any, ClassVar

from .base import FOREIGN
from .fla import THETA, FLAConverter
from .reader import ConfigReader
from .rules import Rule, fused
from .table import Always, Layer, Modules, Option, Tensors, Unused

_SIZES = (
    Option("qk_nope_head_dim", default=128, null=True),
    Option("qk_rope_head_dim", default=64, null=True),
)


def _head_dims(reader: ConfigReader) -> tuple[int, None]:
    return sum(size for option in _SIZES for size in option.to_ours(reader).values()), None


def _window(layer: Layer) -> int | None:
    own = layer.mixer.window
    return (layer.config.sliding_window if own is None else own) or None


def _latent(layer: Layer, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Rule:
    """Our one projection is two of theirs."""
    split = fused(theirs, ours[0], (layer.mixer.kv_lora_rank, layer.mixer.qk_rope_head_dim))
    return Rule(ours, theirs, split.to_theirs, split.to_ours)


@FOREIGN.register("mla")
class FLALatentAttention(FLAConverter):
    """FLA's MLA: the latent and the rotary key come from two projections, rotary features lie in halves."""

    architecture, mixer = "mla", "mla"
    grouped_heads = False
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 16}
    mixer_options = (
        # Its rotary embedding knows only theta; a scaling of the softmax is computed there and not used.
        Unused("rope_scaling rope_parameters elementwise_affine"),
        *_SIZES,
        Option(
            "qk_head_dim",
            None,
            lambda reader: _head_dims(reader)[0],
            allowed=_head_dims,
            write=lambda layer: layer.mixer.qk_nope_head_dim + layer.mixer.qk_rope_head_dim,
        ),
        Option("q_lora_rank", default=64),
        Option("kv_lora_rank", default=512),
        Option("v_head_dim", default=128),
        Always("bias", False),
        Option("window_size", "window", 0, null=True, write=_window),
        THETA,
        Always("latent_norm_eps", 1e-5),  # whatever the config says
    )
    mixer_tensors = (
        Tensors("kv_a_proj.weight", "kv_proj.0.weight k_rope.weight", layout=_latent),
        Modules("kv_norm kv_b_proj o_proj", "kv_proj.1 kv_proj.2 o_proj"),
        Modules("q_proj", when=lambda layer: layer.mixer.q_lora_rank is None),
        Modules(
            "q_a_proj q_norm q_b_proj",
            "q_proj.0 q_proj.1 q_proj.2",
            when=lambda layer: layer.mixer.q_lora_rank is not None,
        ),
    )
