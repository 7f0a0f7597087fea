"""transformers' `RecurrentGemmaForCausalLM`: RG-LRU layers and attention over a window."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from ..core.errors import ConfigError
from ..layers.mixers.rg_lru import RealGatedLRU
from ..models.configuration import ArchConfig
from .base import FOREIGN
from .directions import layers_of, options_to_ours, options_to_theirs
from .names import ACTIVATIONS
from .reader import WHOLE, ConfigReader
from .table import Always, Entry, Layer, Modules, Option, Tensors, Unused, under, when
from .transformers_dense import BLOCKS, HEADS, LlamaBlocks
from .transformers_hybrids import attends, without_attention
from .transformers_variants import without

_RECURRENT, _ATTENTION = "recurrent", "attention"


def _is_scan(layer: Layer) -> bool:
    return layer.mixer_class is RealGatedLRU


def _rope(given: dict[str, Any] | None, reader: ConfigReader) -> dict[str, Any]:
    rope = dict(given or {})
    rope.setdefault("rope_theta", reader.take("rope_theta", 10000.0))
    rope.setdefault("partial_rotary_factor", reader.take("partial_rotary_factor", 0.5))
    rope.setdefault("rope_type", "default")
    if rope["rope_type"] != "default":
        raise ConfigError(f"config.rope_parameters: rope_type {rope['rope_type']!r} is not supported; use 'default'")
    return rope


def _multiplier(hidden: int) -> float:
    """sqrt(D) as they keep it, in bfloat16."""
    return float(torch.tensor(hidden**0.5, dtype=torch.bfloat16))


_MODEL: tuple[Entry, ...] = (
    *without(BLOCKS, "rope_parameters", "hidden_act", "intermediate_size", "max_position_embeddings"),
    *HEADS,
    Option("rope_parameters", read=_rope, write=lambda layer: dict(layer.config.rope_parameters or {})),
    Option("hidden_activation", "hidden_act", "gelu_pytorch_tanh", allowed=ACTIVATIONS),
    Option(
        "intermediate_size",
        required=True,
        read=lambda both, _: both // 2,
        write=lambda layer: 2 * (layer.ffn_width or 0),
    ),
    Option(("attention_window_size", "sliding_window"), "sliding_window", 2048),
    Option("logits_soft_cap", "final_logit_softcapping", 30.0),
    Always("norm", "rmsnorm_offset"),
    Always("mlp_bias", True),
    Unused("w_init_variance_scale final_w_init_variance_scale layers_block_type layer_types"),
)


@FOREIGN.register("recurrent_gemma")
class RecurrentGemma(LlamaBlocks):
    """See above."""

    architecture = "griffin"
    defaults: ClassVar[dict[str, Any]] = {"intermediate_size": 7680, "tie_word_embeddings": True}
    scan_options: ClassVar[tuple[Entry, ...]] = (
        Option("lru_width", "width", kind=WHOLE, write=lambda layer: layer.effective["width"]),
        Option("conv1d_width", "conv_size", 4, kind=WHOLE),
    )
    model_tensors = (Modules("model.embed_tokens model.norm lm_head", "model.embed_tokens model.final_norm lm_head"),)
    layer_tensors = (
        Modules("mixer_norm ffn_norm", "temporal_pre_norm channel_pre_norm"),
        *when(
            attends,
            under(
                "mixer",
                "temporal_block",
                Modules("q_proj k_proj v_proj", bias=lambda layer: layer.effective["qkv_bias"]),
                Modules("o_proj", bias=True),
            ),
        ),
        *when(
            _is_scan,
            under(
                "mixer",
                "temporal_block",
                Modules("x_proj y_proj o_proj conv", "linear_x linear_y linear_out conv_1d", bias=True),
                Tensors("decay", "rg_lru.recurrent_param"),
                Tensors(
                    "input_gate.weight input_gate.bias recurrence_gate.weight recurrence_gate.bias",
                    "rg_lru.input_gate_weight rg_lru.input_gate_bias rg_lru.recurrent_gate_weight "
                    "rg_lru.recurrent_gate_bias",
                ),
            ),
        ),
        *under("ffn", "mlp_block", Modules("gate_proj up_proj down_proj", bias=True)),
    )
    ignored_keys = ("normalizer",)

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        values = {"architecture": self.architecture, **options_to_ours(_MODEL, reader)}
        count = values["num_hidden_layers"]
        kinds = reader.take("block_types", [_RECURRENT, _RECURRENT, _ATTENTION])
        if not isinstance(kinds, (list, tuple)) or not kinds or not set(kinds) <= {_RECURRENT, _ATTENTION}:
            raise ConfigError(f"config.block_types: {kinds!r} is not allowed; use a list of {_RECURRENT}, {_ATTENTION}")
        scan = {
            "type": "rg_lru",
            "gate_activation": values["hidden_act"],
            **options_to_ours(self.scan_options, reader),
        }
        bias = reader.take("attention_bias", False)
        attention = {"type": "attention", "qkv_bias": bias, "out_bias": True}
        kinds = [kinds[index % len(kinds)] for index in range(count)]
        if _ATTENTION not in kinds:
            values = {name: value for name, value in without_attention(values).items() if name != "sliding_window"}
        values["embedding_multiplier"] = _multiplier(values["hidden_size"])
        return {**values, "mixer": [scan if kind == _RECURRENT else attention for kind in kinds]}

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        layers = layers_of(config)
        theirs = options_to_theirs(_MODEL, layers[0], config)
        scan = next((layer for layer in layers if _is_scan(layer)), None)
        if scan is not None:
            theirs |= options_to_theirs(self.scan_options, scan, scan.mixer)
        attention = next((layer for layer in layers if attends(layer)), None)
        if attention is not None:
            theirs["attention_bias"] = attention.effective["qkv_bias"]
        return {**theirs, "block_types": [_ATTENTION if attends(layer) else _RECURRENT for layer in layers]}
