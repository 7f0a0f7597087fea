"""transformers' hybrids of Gated DeltaNet and gated attention: qwen3_next and the text models of qwen3_5, dense and
with experts."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..layers.mixers.gated_delta_net import GatedDeltaNet
from ..models.configuration import ArchConfig
from .base import FOREIGN
from .directions import layers_of, options_to_ours, options_to_theirs
from .moe import ROUTER_LOGITS, MoEConverter, has_experts
from .reader import ConfigReader
from .rules import Rule, fused, in_turn
from .table import Always, Entry, Layer, Modules, Option, Tensors, Unused, only, under
from .transformers_dense import BLOCKS, HEADS, NORMS
from .transformers_hybrids import without_attention

_DELTA, _FULL = "linear_attention", "full_attention"


def _is_delta(layer: Layer) -> bool:
    return layer.mixer_class is GatedDeltaNet


def _attends(layer: Layer) -> bool:
    return not _is_delta(layer)


def _dense(layer: Layer) -> bool:
    return not has_experts(layer)


def _sizes(layer: Layer) -> Any:
    return GatedDeltaNet.head_sizes(layer.config, layer.mixer)


def _rope(given: dict[str, Any] | None, reader: ConfigReader) -> dict[str, Any]:
    """Of text, for which the three kinds of positions of images and their sections are one."""
    rope = dict(given or reader.take("rope_scaling") or {})
    for name in ("mrope_section", "mrope_interleaved"):
        rope.pop(name, None)
    rope.setdefault("rope_theta", reader.take("rope_theta", 10000.0))
    rope.setdefault("partial_rotary_factor", reader.take("partial_rotary_factor", 0.25))
    rope.setdefault("rope_type", rope.pop("type", "default"))
    return rope


_MODEL: tuple[Entry, ...] = (
    *(entry for entry in BLOCKS if not (isinstance(entry, Option) and entry.names[0] == "rope_parameters")),
    *HEADS,
    Unused("rope_theta rope_scaling partial_rotary_factor full_attention_interval"),
    Option("rope_parameters", read=_rope, write=lambda layer: dict(layer.config.rope_parameters or {})),
    only("attention_bias", False),  # of another one the gate has a bias as well
    Always("norm", "rmsnorm_offset"),
    Always("qk_norm", True),
)
_DELTA_OPTIONS: tuple[Entry, ...] = (
    Option("linear_num_key_heads", "num_heads", 16, write=lambda layer: _sizes(layer).num_kv_heads),
    Option("linear_num_value_heads", "num_v_heads", 32, write=lambda layer: _sizes(layer).num_heads),
    Option("linear_key_head_dim", "head_dim", 128, write=lambda layer: _sizes(layer).head_k_dim),
    Option(
        "linear_value_head_dim",
        "expand_v",
        128,
        read=lambda width, reader: width / reader.take("linear_key_head_dim", 128),
        write=lambda layer: _sizes(layer).head_v_dim,
    ),
    Option("linear_conv_kernel_dim", "conv_size", 4),
)
_EXPERT_OPTIONS: tuple[Entry, ...] = (
    Option("num_experts", default=512),
    Option("num_experts_per_tok", default=10),
    Option("moe_intermediate_size", "intermediate_size", 512),
    Option("shared_expert_intermediate_size", "shared_intermediate_size", 512),
    Option("router_aux_loss_coef", "aux_loss_coef", 0.001),
    Always("num_shared_experts", 1),
    Always("shared_gate", True),
)
_NORMALISED = Option("norm_topk_prob", "normalize_weights", True)


def _per_key_head(layer: Layer, ours: tuple[str, ...], theirs: tuple[str, ...], sizes: list[int]) -> Rule:
    """Parts of each key head in turn, of `sizes` rows, in one tensor."""
    heads = _sizes(layer).num_kv_heads

    def split(tensors: list[Tensor]) -> list[Tensor]:
        parts = tensors[0].unflatten(0, (heads, -1)).split(sizes, 1)
        return [part.flatten(0, 1).contiguous() for part in parts]

    def join(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.cat([tensor.unflatten(0, (heads, -1)) for tensor in tensors], 1).flatten(0, 1).contiguous()]

    return Rule(ours, theirs, split, join)


def _qkvz(layer: Layer, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Rule:
    sizes = _sizes(layer)
    values = sizes.value_dim // sizes.num_kv_heads
    return _per_key_head(layer, ours, theirs, [sizes.head_k_dim, sizes.head_k_dim, values, values])


def _ba(layer: Layer, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Rule:
    sizes = _sizes(layer)
    return _per_key_head(layer, ours, theirs, [sizes.num_heads // sizes.num_kv_heads] * 2)


def _qkv(layer: Layer, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Rule:
    sizes = _sizes(layer)
    return fused(ours, theirs[0], [sizes.key_dim, sizes.key_dim, sizes.value_dim])


def _query_and_gate(layer: Layer, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Rule:
    return in_turn(ours, theirs, layer.effective["heads"][0])


_SHARED_TENSORS: tuple[Tensors, ...] = (
    NORMS,
    *under(
        "mixer",
        "self_attn",
        Tensors("q_proj.weight g_proj.weight", "q_proj.weight", _attends, layout=_query_and_gate),
        Modules("k_proj v_proj o_proj q_norm k_norm", when=_attends),
    ),
    *under(
        "mixer",
        "linear_attn",
        Tensors("q_conv.weight k_conv.weight v_conv.weight", "conv1d.weight", _is_delta, layout=_qkv),
        Tensors("A_log dt_bias", when=_is_delta),
        Modules("o_norm o_proj", "norm out_proj", when=_is_delta),
    ),
    *under(
        "ffn",
        "mlp",
        Modules("gate_proj up_proj down_proj", when=_dense),
        Tensors(
            "router.weight experts.gate_up_proj experts.down_proj",
            "gate.weight experts.gate_up_proj experts.down_proj",
            when=has_experts,
        ),
        Modules(
            "shared_experts.gate_proj shared_experts.up_proj shared_experts.down_proj",
            "shared_expert.gate_proj shared_expert.up_proj shared_expert.down_proj",
            when=has_experts,
        ),
        Modules("shared_gate", "shared_expert_gate", when=has_experts),
    ),
)


class QwenHybrid(MoEConverter):
    """What they share: which layer is of which kind, and with experts or not."""

    has_experts: ClassVar[bool] = False
    expert_options: ClassVar[tuple[Entry, ...]] = ()

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        table = (*_MODEL, ROUTER_LOGITS) if self.has_experts else _MODEL
        values = {"architecture": "moe" if self.has_experts else "mixed", **options_to_ours(table, reader)}
        count = values["num_hidden_layers"]
        delta = {"type": "gated_delta_net", **options_to_ours(_DELTA_OPTIONS, reader)}
        attention = {"type": "attention", "output_gate": "elementwise"}
        interval = reader.take("full_attention_interval", 4)
        kinds = reader.take("layer_types")
        if kinds is None:
            kinds = [_FULL if (index + 1) % interval == 0 else _DELTA for index in range(count)]
        if not isinstance(kinds, list) or len(kinds) != count or not set(kinds) <= {_DELTA, _FULL}:
            raise ConfigError(
                f"config.layer_types: {kinds!r} is not allowed; use {_DELTA} or {_FULL} for each of {count} layers"
            )
        if _FULL not in kinds:
            values = without_attention(values)
        values["mixer"] = [delta if kind == _DELTA else attention for kind in kinds]
        if values["hidden_act"] != "silu" and _DELTA in kinds:
            raise ConfigError(
                f"config.hidden_act: {reader.config['hidden_act']!r} is not supported by {reader.model_type}, whose "
                "convolutions have it too; allowed: 'silu'"
            )
        values["ffn"] = self.feed_forwards(reader, count)
        return values

    def feed_forwards(self, reader: ConfigReader, count: int) -> Any:
        """The feed-forward of every layer."""
        if not self.has_experts:
            return "glu"
        experts = {"type": "moe", **options_to_ours(self.expert_options, reader)}
        return [experts if self.is_sparse(reader, index) else "glu" for index in range(count)]

    def is_sparse(self, reader: ConfigReader, index: int) -> bool:
        """Whether a layer has experts."""
        return True

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        layers = layers_of(config)
        table = (*_MODEL, ROUTER_LOGITS) if self.has_experts else _MODEL
        theirs = options_to_theirs(table, layers[0], config)
        dense = next((layer for layer in layers if _dense(layer)), None)
        theirs["intermediate_size"] = config.intermediate_size if dense is None else dense.ffn_width
        theirs["layer_types"] = [_DELTA if _is_delta(layer) else _FULL for layer in layers]
        for table, found in ((_DELTA_OPTIONS, _is_delta), (self.expert_options, has_experts)):
            layer = next((each for each in layers if found(each)), None)
            if layer is not None:
                source = layer.mixer if found is _is_delta else layer.ffn
                theirs |= options_to_theirs(table, layer, source)
        return theirs


@FOREIGN.register("qwen3_next")
class Qwen3Next(QwenHybrid):
    """`Qwen3NextForCausalLM`."""

    has_experts = True
    defaults: ClassVar[dict[str, Any]] = {
        "num_key_value_heads": 2,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "intermediate_size": 5632,
    }
    expert_options = (*_EXPERT_OPTIONS, _NORMALISED)
    layer_tensors = (
        *_SHARED_TENSORS,
        *under(
            "mixer",
            "linear_attn",
            Tensors(
                "q_proj.weight k_proj.weight v_proj.weight g_proj.weight",
                "in_proj_qkvz.weight",
                _is_delta,
                layout=_qkvz,
            ),
            Tensors("b_proj.weight a_proj.weight", "in_proj_ba.weight", _is_delta, layout=_ba),
        ),
    )

    def is_sparse(self, reader: ConfigReader, index: int) -> bool:
        dense = reader.take("mlp_only_layers") or []
        step = reader.take("decoder_sparse_step", 1)
        return index not in dense and (index + 1) % step == 0

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        dense = [layer.index for layer in layers_of(config) if _dense(layer)]
        return {**super().config_to_theirs(config), "mlp_only_layers": dense, "decoder_sparse_step": 1}


_PLAIN_TENSORS: tuple[Tensors, ...] = (
    *_SHARED_TENSORS,
    *under(
        "mixer",
        "linear_attn",
        Tensors("q_proj.weight k_proj.weight v_proj.weight", "in_proj_qkv.weight", _is_delta, layout=_qkv),
        Modules("g_proj b_proj a_proj", "in_proj_z in_proj_b in_proj_a", when=_is_delta),
    ),
)


@FOREIGN.register("qwen3_5_text")
class Qwen35Text(QwenHybrid):
    """`Qwen3_5ForCausalLM`, the text model."""

    defaults: ClassVar[dict[str, Any]] = {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 32768,
    }
    layer_tensors = _PLAIN_TENSORS


@FOREIGN.register("qwen3_5_moe_text")
class Qwen35MoEText(QwenHybrid):
    """`Qwen3_5MoeForCausalLM`, the text model with experts."""

    has_experts = True
    defaults: ClassVar[dict[str, Any]] = {
        "num_key_value_heads": 2,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "intermediate_size": 512,
    }
    expert_options = _EXPERT_OPTIONS
    layer_tensors = _PLAIN_TENSORS
