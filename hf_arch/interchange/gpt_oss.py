"""transformers' gpt_oss: attention with sinks and windows in some layers, experts that clamp what they multiply."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..models.configuration import ArchConfig
from .base import FOREIGN
from .moe import ROUTER_LOGITS, MoEConverter
from .reader import ConfigReader
from .rules import Rule
from .table import Always, Layer, Modules, Option, Tensors, Unused, under
from .transformers_dense import BLOCKS as LLAMA_BLOCKS
from .transformers_dense import HEADS, KINDS, NORMS, attention_bias
from .transformers_variants import without

_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _mixers(kinds: Any, reader: ConfigReader) -> list[dict[str, Any]]:
    count, window = reader.need("num_hidden_layers"), reader.take("sliding_window", 128)
    if kinds is None:
        kinds = [KINDS[(index + 1) % 2] for index in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count or not set(kinds) <= {*KINDS}:
        raise ConfigError(
            f"config.layer_types: {kinds!r} is not allowed; use {' or '.join(KINDS)} for each of {count} layers"
        )
    windows = [window or 0 if kind == KINDS[1] else 0 for kind in kinds]
    return [{"type": "attention", "sinks": True, "window": size} for size in windows]


def _rope(given: dict[str, Any] | None, reader: ConfigReader) -> dict[str, Any]:
    rope = dict(given or reader.take("rope_scaling") or _YARN)
    rope.setdefault("rope_theta", reader.take("rope_theta", 150000.0))
    rope.setdefault("rope_type", rope.pop("type", "default"))
    if rope["rope_type"] == "default":
        rope.pop("partial_rotary_factor", None)
    return rope


def _windows(layer: Layer) -> list[int | None]:
    return layer.config.windows


def _gates(layer: Layer, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Rule:
    """Gate and up in turn, [E, D, (I, 2)] or [E, (I, 2)], there; one behind the other, [E, 2 I, D], here."""

    def to_ours(tensors: list[Tensor]) -> list[Tensor]:
        return [_flipped(torch.cat((x[..., ::2], x[..., 1::2]), -1)) for x in tensors]

    def to_theirs(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.stack(_flipped(x).chunk(2, -1), -1).flatten(-2).contiguous() for x in tensors]

    return Rule(ours, theirs, to_ours, to_theirs)


def _flipped(x: Tensor) -> Tensor:
    """The matrices of all experts the other way round; biases as they are."""
    return x.mT.contiguous() if x.dim() == 3 else x.contiguous()


def _transposed(layer: Layer, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Rule:
    def flip(tensors: list[Tensor]) -> list[Tensor]:
        return [_flipped(x) for x in tensors]

    return Rule(ours, theirs, flip, flip)


@FOREIGN.register("gpt_oss")
class GptOss(MoEConverter):
    """`GptOssForCausalLM`."""

    defaults: ClassVar[dict[str, Any]] = {
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
    }
    model_options = (
        *without(LLAMA_BLOCKS, "rope_parameters", "hidden_act"),
        *HEADS,
        Option("attention_bias", default=True),
        Option("rope_parameters", read=_rope, write=lambda layer: dict(layer.config.rope_parameters or {})),
        Unused("hidden_act experts_per_token swiglu_bias"),
        # Their model makes the mask of a window whether or not a layer has one.
        Option("sliding_window", None, write=lambda layer: max(filter(None, _windows(layer)), default=128)),
        Option("layer_types", "mixer", read=_mixers, write=lambda layer: [KINDS[bool(w)] for w in _windows(layer)]),
        ROUTER_LOGITS,
    )
    ffn = "moe"
    ffn_options = (
        Option("num_local_experts", "num_experts", 128),
        Option("num_experts_per_tok", default=4),
        Option("swiglu_limit", "clamp_limit", 7.0),
        Option("swiglu_alpha", "clamp_alpha", 1.702),
        Option("router_aux_loss_coef", "aux_loss_coef", 0.001),
        Always("router_bias", True),
    )
    layer_tensors = (
        NORMS,
        *under("mixer", "self_attn", Modules("q_proj k_proj v_proj o_proj", bias=attention_bias), Tensors("sinks")),
        *under(
            "ffn",
            "mlp",
            Modules("router", bias=True),
            *(
                Tensors(f"experts.{name}", layout=_gates if name.startswith("gate") else _transposed)
                for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
            ),
        ),
    )

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        return {**super().config_to_theirs(config), "hidden_act": "silu"}

    def current_names(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        for key in state_dict:
            if key.endswith(("_blocks", "_scales")):
                raise ConfigError(
                    f"state_dict: {key!r} is packed in MXFP4, which is not supported; dequantise it first"
                )
        return state_dict
