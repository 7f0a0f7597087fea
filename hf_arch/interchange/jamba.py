"""transformers' `JambaForCausalLM`: Mamba with norms inside, attention without positions, experts in some layers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from ..core.errors import ConfigError
from ..layers.mixers.mamba import SelectiveStateSpace
from ..models.configuration import ArchConfig
from .base import FOREIGN
from .directions import layers_of, options_to_ours, options_to_theirs
from .moe import ROUTER_LOGITS, MoEConverter, has_experts
from .reader import WHOLE, ConfigReader
from .state_space import WIDTHS
from .table import Always, Entry, Layer, Modules, Option, Tensors, Unused, under, when
from .transformers_dense import ATTENTION, BLOCKS, HEADS
from .transformers_hybrids import TwoKinds, attends
from .transformers_variants import without


def _is_scan(layer: Layer) -> bool:
    return layer.mixer_class is SelectiveStateSpace


def _rank(rank: Any, reader: ConfigReader) -> int:
    return -(-reader.need("hidden_size") // 16) if rank == "auto" else rank


def _periodic(layers: Collection[int], count: int, name: str) -> dict[str, int]:
    """The period and the offset at which these of `count` layers come.

    Raises:
        ConfigError: there are none.
    """
    for period in range(1, count + 2):
        for offset in range(period):
            if list(range(offset, count, period)) == sorted(layers):
                return {f"{name}_layer_period": period, f"{name}_layer_offset": offset}
    raise ConfigError(
        f"mixer: layers {sorted(layers)} cannot be expressed in a jamba checkpoint, whose {name} layers are periodic"
    )


_EXPERT_OPTIONS: tuple[Option, ...] = (
    Option("num_experts", default=16, kind=WHOLE),
    Option("num_experts_per_tok", default=2),
    Option("router_aux_loss_coef", "aux_loss_coef", 0.001),
)


@FOREIGN.register("jamba")
class Jamba(TwoKinds, MoEConverter):
    """See above."""

    other, other_class = "mamba", SelectiveStateSpace
    defaults: ClassVar[dict[str, Any]] = {"num_key_value_heads": 8, "max_position_embeddings": 262144}
    model_table: ClassVar[tuple[Entry, ...]] = (
        *without(BLOCKS, "rope_parameters", "hidden_act"),
        Option("hidden_act", default="silu", allowed={"silu": "silu"}),  # Mamba's convolutions have it too
        *HEADS,
        ROUTER_LOGITS,
        Always("position", "none"),
        Unused("use_mamba_kernels use_mambapy use_associative_scan num_logits_to_keep layers_block_type"),
    )
    other_options = (
        Option("mamba_d_state", "state_size", 16),
        Option("mamba_d_conv", "conv_size", 4),
        Option("mamba_expand", "expand", 2),
        Option("mamba_dt_rank", "dt_rank", "auto", read=_rank, write=lambda layer: layer.effective["dt_rank"]),
        Option("mamba_conv_bias", "conv_bias", True),
        Option("mamba_proj_bias", "proj_bias", False),
        Always("inner_norms", True),
    )
    model_tensors = (
        Modules("model.embed_tokens model.norm lm_head", "model.embed_tokens model.final_layernorm lm_head"),
    )
    layer_tensors = (
        Modules("mixer_norm ffn_norm", "input_layernorm pre_ff_layernorm"),
        *when(attends, ATTENTION),
        *when(
            _is_scan,
            under(
                "mixer",
                "mamba",
                Tensors("A_log D"),
                Modules("x_proj"),
                Modules("dt_proj", bias=True),
                Modules("dt_norm B_norm C_norm", "dt_layernorm b_layernorm c_layernorm"),
                *WIDTHS,
            ),
        ),
        *under(
            "ffn",
            "feed_forward",
            Modules("gate_proj up_proj down_proj", when=lambda layer: not has_experts(layer)),
            Tensors("router.weight experts.gate_up_proj experts.down_proj", when=has_experts),
        ),
    )

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        values = super().config_to_ours(reader)
        experts = {"type": "moe", "normalize_weights": False, **options_to_ours(_EXPERT_OPTIONS, reader)}
        sparse = self._layers(reader, "expert", 2, 1, values["num_hidden_layers"])
        if experts["num_experts"] == 1 or not sparse:
            if values.pop("output_router_logits"):
                raise ConfigError("config.output_router_logits: True is not supported without experts; use False")
            return {**values, "ffn": "glu"}
        ffn = [experts if index in sparse else "glu" for index in range(values["num_hidden_layers"])]
        return {**values, "architecture": "moe", "ffn": ffn}

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        layers, theirs = layers_of(config), super().config_to_theirs(config)
        sparse = [layer for layer in layers if has_experts(layer)]
        theirs |= _periodic([layer.index for layer in sparse], len(layers), "expert")
        return {**theirs, **(options_to_theirs(_EXPERT_OPTIONS, sparse[0], sparse[0].ffn) if sparse else {})}

    def full_layers(self, reader: ConfigReader, count: int) -> list[int]:
        return self._layers(reader, "attn", 8, 4, count)

    def _layers(self, reader: ConfigReader, name: str, period: int, offset: int, count: int) -> list[int]:
        period = reader.take(f"{name}_layer_period", period, kind=WHOLE)
        offset = reader.take(f"{name}_layer_offset", offset)
        if not 0 <= offset < period:
            raise ConfigError(f"config.{name}_layer_offset: {offset!r} is not allowed; use 0 to {period - 1}")
        return list(range(offset, count, period))

    def their_full_layers(self, layers: list[int], count: int) -> dict[str, Any]:
        return _periodic(layers, count, "attn")
