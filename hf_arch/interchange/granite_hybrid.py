"""transformers' `GraniteMoeHybridForCausalLM`: Mamba-2 and attention with Granite's multipliers, dense or with experts
together with a shared feed-forward."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ..core.errors import ConfigError
from ..models.configuration import ArchConfig
from .base import FOREIGN
from .directions import layers_of, options_to_theirs
from .mamba2 import MIXER_TENSORS
from .moe import ROUTER_LOGITS, has_experts
from .reader import COUNT, ConfigReader
from .rules import Rule, fused
from .table import Layer, Modules, Option, Tensors, Unused, under, when
from .transformers_dense import ATTENTION, BIAS, BLOCKS, HEADS, NORMS, LlamaBlocks
from .transformers_hybrids import Bamba, attends, is_scan
from .transformers_variants import MULTIPLIERS, without

_ATTENTION, _MAMBA = "full_attention", "linear_attention"
_OLDER = {
    "block_sparse_moe.input_linear.weight": "block_sparse_moe.experts.gate_up_proj",
    "block_sparse_moe.output_linear.weight": "block_sparse_moe.experts.down_proj",
    "block_sparse_moe.router.layer.weight": "block_sparse_moe.router.weight",
}


def _dense(layer: Layer) -> bool:
    return not has_experts(layer)


def _shared_width(layer: Layer) -> int:
    shared = has_experts(layer)
    return (layer.ffn_class.shared_width if shared else layer.ffn_class.width)(layer.config, layer.ffn)


def _gate_and_up(layer: Layer, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Rule:
    return fused(ours, theirs[0], [_shared_width(layer)] * 2)


_EXPERTS: tuple[Option, ...] = (
    Option(
        "num_local_experts",
        "num_experts",
        8,
        kind=COUNT,
        write=lambda layer: layer.ffn.num_experts if has_experts(layer) else 0,
    ),
    Option("num_experts_per_tok", default=2),
    Option("router_aux_loss_coef", "aux_loss_coef", 0.001),
    Option("shared_intermediate_size", default=1024, write=_shared_width),
)


@FOREIGN.register("granitemoehybrid")
class GraniteMoeHybrid(Bamba):
    """See above; without experts (`num_local_experts: 0`) the shared feed-forward is the only one."""

    defaults: ClassVar[dict[str, Any]] = {}
    model_table = (
        *without(BLOCKS, "hidden_act"),
        Option("hidden_act", default="silu", allowed={"silu": "silu"}),  # the gate of their Mamba-2 has it too
        *HEADS,
        BIAS,
        *MULTIPLIERS,
        Option("position_embedding_type", "position", allowed={None: "none", "rope": "rope"}),
        Unused("mamba_chunk_size"),
    )
    model_tensors = LlamaBlocks.model_tensors
    layer_tensors = (
        NORMS,
        *when(attends, ATTENTION),
        *when(is_scan, under("mixer", "mamba", *MIXER_TENSORS)),
        *when(
            _dense,
            (
                Tensors(
                    "ffn.gate_proj.weight ffn.up_proj.weight", "shared_mlp.input_linear.weight", layout=_gate_and_up
                ),
                Modules("ffn.down_proj", "shared_mlp.output_linear"),
            ),
        ),
        *when(
            has_experts,
            (
                Tensors(
                    "ffn.shared_experts.gate_proj.weight ffn.shared_experts.up_proj.weight",
                    "shared_mlp.input_linear.weight",
                    layout=_gate_and_up,
                ),
                Modules("ffn.shared_experts.down_proj", "shared_mlp.output_linear"),
                Tensors(
                    "ffn.router.weight ffn.experts.gate_up_proj ffn.experts.down_proj",
                    "block_sparse_moe.router.weight block_sparse_moe.experts.gate_up_proj "
                    "block_sparse_moe.experts.down_proj",
                ),
            ),
        ),
    )

    def current_names(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        renamed = {}
        for key, tensor in state_dict.items():
            old = next((old for old in _OLDER if key.endswith(old)), None)
            renamed[key if old is None else key.removesuffix(old) + _OLDER[old]] = tensor
        return renamed

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        values = super().config_to_ours(reader)
        scale = reader.take("attention_multiplier", 1.0)
        attention = {"type": "attention", "scale": scale}
        values["mixer"] = [attention if mixer == "attention" else mixer for mixer in values["mixer"]]
        if values["position"] == "none":
            values.pop("rope_parameters", None)
        experts = {name: value for option in _EXPERTS for name, value in option.to_ours(reader).items()}
        width = experts.pop("shared_intermediate_size")
        if not experts["num_experts"]:
            if reader.take("output_router_logits", False):
                raise ConfigError("config.output_router_logits: True is not supported without experts; use False")
            return {**values, "ffn": {"type": "glu", "intermediate_size": width}}
        shared = {"num_shared_experts": 1, "shared_intermediate_size": width}
        values |= ROUTER_LOGITS.to_ours(reader)
        return {**values, "architecture": "moe", "ffn": {"type": "moe", **experts, **shared}}

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        layers = layers_of(config)
        theirs = super().config_to_theirs(config) | options_to_theirs(_EXPERTS, layers[0], layers[0].ffn)
        if has_experts(layers[0]):
            theirs |= ROUTER_LOGITS.to_theirs(layers[0], config)
        attention = next((layer for layer in layers if attends(layer)), None)
        scale = 1.0 if attention is None else attention.effective["scale"]
        return {**theirs, "attention_multiplier": scale}

    def full_layers(self, reader: ConfigReader, count: int) -> list[int]:
        kinds = reader.take("layer_types", reader.take("layers_block_type"))
        kinds = [_MAMBA] * count if kinds is None else kinds
        names = {"mamba": _MAMBA, "attention": _ATTENTION, _MAMBA: _MAMBA, _ATTENTION: _ATTENTION}
        if not isinstance(kinds, list) or len(kinds) != count or not set(kinds) <= set(names):
            raise ConfigError(
                f"config.layer_types: {kinds!r} is not allowed; use {_MAMBA} or {_ATTENTION} for each of {count} layers"
            )
        return [index for index, kind in enumerate(kinds) if names[kind] == _ATTENTION]

    def their_full_layers(self, layers: list[int], count: int) -> dict[str, Any]:
        return {"layer_types": [_ATTENTION if index in layers else _MAMBA for index in range(count)]}
