"""transformers' `OlmoHybridForCausalLM`: Gated DeltaNet with norms before, attention with norms behind sublayers."""

from __future__ import annotations

from typing import Any, ClassVar

from ..core.errors import ConfigError
from ..layers.mixers.gated_delta_net import GatedDeltaNet
from ..models.configuration import ArchConfig
from .base import FOREIGN
from .directions import layers_of, options_to_ours, options_to_theirs
from .reader import WHOLE, ConfigReader
from .rules import Rule, fused
from .table import Always, Entry, Layer, Modules, Option, Tensors, Unused, under, when
from .transformers_dense import BIAS, BLOCKS, HEADS, LlamaBlocks, attention_bias
from .transformers_hybrids import attends
from .transformers_variants import without

_DELTA, _FULL = "linear_attention", "full_attention"


def _is_delta(layer: Layer) -> bool:
    return layer.mixer_class is GatedDeltaNet


def _sizes(layer: Layer) -> Any:
    return GatedDeltaNet.head_sizes(layer.config, layer.mixer)


def _convolutions(layer: Layer, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Rule:
    sizes = _sizes(layer)
    return fused(ours, theirs[0], [sizes.key_dim, sizes.key_dim, sizes.value_dim])


def _rope(given: dict[str, Any] | None, reader: ConfigReader) -> dict[str, Any] | None:
    """None where they rotate nothing: without parameters or without a base."""
    rope = dict(given or reader.take("rope_scaling") or {})
    rope.setdefault("rope_theta", reader.take("rope_theta"))
    if rope["rope_theta"] is None:
        return None
    rope.setdefault("rope_type", rope.pop("type", "default"))
    if rope["rope_type"] == "default":
        rope.pop("partial_rotary_factor", None)  # these models rotate whole heads, whatever it says
    return rope


def _their_rope(layer: Layer) -> dict[str, Any]:
    return (
        {"rope_theta": None, "rope_type": "default"}
        if layer.config.position == "none"
        else {**(layer.config.rope_parameters or {})}
    )


_MODEL: tuple[Entry, ...] = (
    *without(BLOCKS, "rope_parameters", "hidden_act"),
    Option("hidden_act", default="silu", allowed={"silu": "silu"}),  # the convolutions have it too
    *HEADS,
    BIAS,
    Option("rope_parameters", read=_rope, write=_their_rope),
    Always("qk_norm", True),
    Unused("linear_a_log_min linear_a_log_max"),
)
_DELTA_OPTIONS: tuple[Entry, ...] = (
    Option("linear_num_key_heads", "num_heads", kind=WHOLE, write=lambda layer: _sizes(layer).num_kv_heads),
    Option("linear_key_head_dim", "head_dim", kind=WHOLE, write=lambda layer: _sizes(layer).head_k_dim),
    Option(
        "linear_num_value_heads",
        None,
        allowed=lambda reader: (reader.take("linear_num_key_heads"), None),
        write=lambda layer: _sizes(layer).num_heads,
    ),
    Option(
        "linear_value_head_dim",
        "expand_v",
        kind=WHOLE,
        read=lambda width, reader: 2.0 if width is None else width / _key_width(reader),
        write=lambda layer: _sizes(layer).head_v_dim,
    ),
    Option("linear_conv_kernel_dim", "conv_size", 4, kind=WHOLE),
    Option("linear_allow_neg_eigval", "allow_neg_eigval", True),
    Option("linear_dt_min", "dt_min", 1e-3),
    Option("linear_dt_max", "dt_max", 0.1),
    Option("linear_dt_init_floor", "dt_init_floor", 1e-4),
    Always("output_norm_eps", 1e-5),  # whatever the config says
)


def _key_width(reader: ConfigReader) -> int:
    heads = reader.given("linear_num_key_heads", reader.need("num_attention_heads"))
    return reader.given("linear_key_head_dim", int(0.75 * reader.need("hidden_size") / heads))


@FOREIGN.register("olmo_hybrid")
class OlmoHybrid(LlamaBlocks):
    """See above."""

    architecture = "mixed"
    defaults: ClassVar[dict[str, Any]] = {"max_position_embeddings": 65536}
    layer_tensors = (
        Modules("mixer_norm ffn_norm", "input_layernorm post_attention_layernorm", when=_is_delta),
        Modules("mixer_post_norm ffn_post_norm", "post_attention_layernorm post_feedforward_layernorm", when=attends),
        *when(
            attends,
            under(
                "mixer",
                "self_attn",
                Modules("q_proj k_proj v_proj o_proj", bias=attention_bias),
                Modules("q_norm k_norm"),
            ),
        ),
        *when(
            _is_delta,
            under(
                "mixer",
                "linear_attn",
                Modules("q_proj k_proj v_proj a_proj b_proj g_proj o_proj o_norm"),
                Tensors("A_log dt_bias"),
                Tensors("q_conv.weight k_conv.weight v_conv.weight", "conv1d.weight", layout=_convolutions),
            ),
        ),
        *under("ffn", "mlp", Modules("gate_proj up_proj down_proj")),
    )

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        values = {"architecture": self.architecture, **options_to_ours(_MODEL, reader)}
        if values["rope_parameters"] is None:
            del values["rope_parameters"]
            values["position"] = "none"
        count = values["num_hidden_layers"]
        kinds = reader.take("layer_types")
        if kinds is None:
            kinds = [_FULL if index % 4 == 3 else _DELTA for index in range(count)]
        both = isinstance(kinds, list) and len(kinds) == count and set(kinds) == {_DELTA, _FULL}
        if not both:
            raise ConfigError(
                f"config.layer_types: {kinds!r} is not allowed; use {_DELTA} and {_FULL}, one for each of {count}"
            )
        delta = {"type": "gated_delta_net", **options_to_ours(_DELTA_OPTIONS, reader)}
        delta["num_heads"] = delta["num_heads"] or values["num_attention_heads"]
        delta["head_dim"] = _key_width(reader)
        attention = {"type": "attention", "qk_norm_over": "all"}
        values["mixer"] = [delta if kind == _DELTA else attention for kind in kinds]
        return {**values, "norm_position": ["pre" if kind == _DELTA else "output" for kind in kinds]}

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        layers = layers_of(config)
        theirs = options_to_theirs(_MODEL, layers[0], config)
        delta = next((layer for layer in layers if _is_delta(layer)), None)
        if delta is not None:
            theirs |= options_to_theirs(_DELTA_OPTIONS, delta, delta.mixer)
        return {**theirs, "layer_types": [_DELTA if _is_delta(layer) else _FULL for layer in layers]}
