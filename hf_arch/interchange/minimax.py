"""transformers' `MiniMaxForCausalLM`: lightning attention and softmax attention on a normed stream, with experts."""

from __future__ import annotations

from typing import Any, ClassVar

from ..core.errors import ConfigError
from ..layers.mixers.lightning import LightningAttention
from ..models.configuration import ArchConfig
from .base import FOREIGN
from .directions import layers_of
from .moe import EXPERTS, ROUTER_LOGITS, MoEConverter
from .reader import ConfigReader
from .rules import Rule, in_turn
from .table import Always, Entry, Layer, Modules, Option, Tensors, Unused, only, under, when
from .transformers_dense import BLOCKS, HEADS, NORMS
from .transformers_hybrids import attends, without_attention
from .transformers_variants import without

_LINEAR, _FULL = "linear_attention", "full_attention"
_FACTORS = ("linear_attn", "full_attn", "mlp")


def _is_lightning(layer: Layer) -> bool:
    return layer.mixer_class is LightningAttention


def _heads_of_qkv(layer: Layer, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Rule:
    return in_turn(ours, theirs, LightningAttention.head_sizes(layer.config, layer.mixer).num_heads)


_MODEL: tuple[Entry, ...] = (
    *without(BLOCKS, "hidden_act", "rms_norm_eps"),
    Option("hidden_act", default="silu", allowed={"silu": "silu"}),  # lightning attention has it too
    Option("rms_norm_eps", "norm_eps", 1e-5),
    *HEADS,
    only("router_jitter_noise", 0.0),
    Option("sliding_window"),
    ROUTER_LOGITS,
    Always("norm_position", "stream"),
    Always("final_norm", True),
    Unused("block_size attention_bias"),
)


@FOREIGN.register("minimax")
class MiniMax(MoEConverter):
    """See above."""

    defaults: ClassVar[dict[str, Any]] = {"num_key_value_heads": 8, "max_position_embeddings": 131072}
    model_options = _MODEL
    ffn = "moe"
    ffn_options = (
        Option("num_local_experts", "num_experts", 8),
        Option("num_experts_per_tok", default=2),
        Option("router_aux_loss_coef", "aux_loss_coef", 0.001),
    )
    ignored_keys: tuple[str, ...] = (
        ".slope_rate",
        ".query_decay",
        ".key_decay",
        ".diagonal_decay",
        *MoEConverter.ignored_keys,
    )
    layout_options = ("block_size",)  # theirs rounds by it, and nothing else depends on it
    layer_tensors = (
        NORMS,
        *when(attends, under("mixer", "self_attn", Modules("q_proj k_proj v_proj o_proj"))),
        *when(
            _is_lightning,
            under(
                "mixer",
                "self_attn",
                Tensors("q_proj.weight k_proj.weight v_proj.weight", "qkv_proj.weight", layout=_heads_of_qkv),
                Modules("o_proj g_proj o_norm", "out_proj output_gate norm"),
            ),
        ),
        *EXPERTS,
    )

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        values = super().config_to_ours(reader)
        count = values["num_hidden_layers"]
        kinds = reader.take("layer_types")
        if kinds is None:
            kinds = [_LINEAR if index % 2 else _FULL for index in range(count)]
        if not isinstance(kinds, list) or len(kinds) != count or not set(kinds) <= {_LINEAR, _FULL}:
            raise ConfigError(
                f"config.layer_types: {kinds!r} is not allowed; use {_LINEAR} or {_FULL} for each of {count} layers"
            )
        if _FULL not in kinds:
            values = {name: value for name, value in without_attention(values).items() if name != "sliding_window"}
        keep, add = (
            {part: float(reader.take(f"{part}_{name}_factor", 1)) for part in _FACTORS} for name in ("alpha", "beta")
        )
        part = {_LINEAR: "linear_attn", _FULL: "full_attn"}
        stream = {
            name: [[factors[part[kind]], factors["mlp"]] for kind in kinds]
            for name, factors in (("keep", keep), ("add", add))
        }
        values["mixer"] = ["lightning" if kind == _LINEAR else "attention" for kind in kinds]
        return {**values, "stream": {"type": "weighted", **stream}}

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        layers, theirs = layers_of(config), super().config_to_theirs(config)
        theirs["layer_types"] = [_FULL if attends(layer) else _LINEAR for layer in layers]
        _, given = config.stream_spec
        for name, ours in (("alpha", "keep"), ("beta", "add")):
            for layer in layers:
                pairs = getattr(given, ours, None) or [[1.0, 1.0]]
                mixer, feed = pairs[layer.index % len(pairs)]
                theirs[f"{'full' if attends(layer) else 'linear'}_attn_{name}_factor"] = mixer
                theirs[f"mlp_{name}_factor"] = feed
        return theirs
