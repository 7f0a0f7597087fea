"""transformers' hybrids of attention with another mixer in Llama's blocks: lfm2 (convolutions), bamba (Mamba-2)."""

from __future__ import annotations

from typing import Any, ClassVar

from ..core.errors import ConfigError
from ..layers.mixers.gated_conv import GatedConvolution
from ..layers.mixers.mamba2 import StateSpaceDual
from ..models.configuration import ArchConfig
from .base import FOREIGN
from .directions import layers_of, options_to_ours, options_to_theirs
from .mamba2 import MIXER_TENSORS, step_limits
from .reader import ConfigReader
from .table import Always, Entry, Layer, Modules, Option, Unused, only, under, when
from .transformers_dense import BIAS, BLOCKS, HEADS, LlamaBlocks, attention_bias
from .transformers_variants import without

_FULL = "full_attention"


def _lfm2_width(given: int, reader: ConfigReader) -> int:
    """The feed-forward's width: theirs, or the rule by which it is made from theirs."""
    if not reader.take("block_auto_adjust_ff_dim", True):
        return given
    width, factor = int(2 * given / 3), reader.take("block_ffn_dim_multiplier", 1.0)
    if factor is None:
        return width
    multiple = reader.take("block_multiple_of", 256)
    return multiple * -(-int(factor * width) // multiple)


def _is_conv(layer: Layer) -> bool:
    return layer.mixer_class is GatedConvolution


def is_scan(layer: Layer) -> bool:
    """Whether its mixer is Mamba-2."""
    return layer.mixer_class is StateSpaceDual


def attends(layer: Layer) -> bool:
    """Whether its mixer is softmax attention."""
    return layer.mixer_class.label == ""


def _normed(layer: Layer) -> bool:
    return attends(layer) and layer.config.qk_norm


def _indices(reader: ConfigReader, name: str, count: int) -> list[int]:
    """A list of layers."""
    found = reader.take(name)
    found = [] if found is None else found
    if not isinstance(found, list) or not all(isinstance(each, int) and 0 <= each < count for each in found):
        raise ConfigError(f"config.{name}: {found!r} is not allowed; use a list of layers from 0 to {count - 1}")
    return found


def without_attention(values: dict[str, Any]) -> dict[str, Any]:
    """A model section without what acts through attention alone, which a model without any refuses."""
    return {name: value for name, value in values.items() if name not in ("rope_parameters", "qk_norm")}


class TwoKinds(LlamaBlocks):
    """Attention in some layers, one other mixer in the others."""

    architecture = "mixed"
    other: ClassVar[str]
    other_class: ClassVar[type]
    other_options: ClassVar[tuple[Entry, ...]] = ()
    model_table: ClassVar[tuple[Entry, ...]]

    def full_layers(self, reader: ConfigReader, count: int) -> list[int]:
        """The layers of attention."""
        raise NotImplementedError

    def their_full_layers(self, layers: list[int], count: int) -> dict[str, Any]:
        """The same, the other way."""
        raise NotImplementedError

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        values = {"architecture": self.architecture, **options_to_ours(self.model_table, reader)}
        count = values["num_hidden_layers"]
        full = self.full_layers(reader, count)
        if not full:
            values = without_attention(values)
        other = {"type": self.other, **options_to_ours(self.other_options, reader)}
        return {**values, "mixer": ["attention" if index in full else other for index in range(count)]}

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        layers = layers_of(config)
        theirs = options_to_theirs(self.model_table, layers[0], config)
        full = [layer.index for layer in layers if attends(layer)]
        theirs |= self.their_full_layers(full, len(layers))
        other = next((layer for layer in layers if layer.mixer_class is self.other_class), None)
        return theirs if other is None else {**theirs, **options_to_theirs(self.other_options, other, other.mixer)}


@FOREIGN.register("lfm2")
class Lfm2(TwoKinds):
    """`Lfm2ForCausalLM`."""

    architecture, other, other_class = "lfm2", "gated_conv", GatedConvolution
    defaults: ClassVar[dict[str, Any]] = {
        "num_key_value_heads": 8,
        "max_position_embeddings": 128000,
        "tie_word_embeddings": True,
        "rope_theta": 1e6,
        "norm_eps": 1e-5,
    }
    model_table = (
        *without(BLOCKS, "rms_norm_eps", "intermediate_size", "hidden_act", "attention_dropout"),
        *HEADS,
        Unused("block_multiple_of block_ffn_dim_multiplier block_ff_dim"),
        Option("norm_eps"),
        Option("intermediate_size", required=True, read=_lfm2_width, write=lambda layer: layer.ffn_width),
        Option("block_auto_adjust_ff_dim", None, True, write=lambda _: False),
        Always("qk_norm", True),
        Always("hidden_act", "silu"),
    )
    other_options = (Option("conv_L_cache", "conv_size", 3), Option("conv_bias", "bias", False))
    model_tensors = (
        Modules("model.embed_tokens model.norm lm_head", "model.embed_tokens model.embedding_norm lm_head"),
    )
    layer_tensors = (
        Modules("mixer_norm ffn_norm", "operator_norm ffn_norm"),
        *under("mixer", "conv", Modules("in_proj conv out_proj", when=_is_conv, bias=lambda layer: layer.mixer.bias)),
        *under(
            "mixer",
            "self_attn",
            Modules("q_proj k_proj v_proj o_proj", "q_proj k_proj v_proj out_proj", when=attends),
            Modules("q_norm k_norm", "q_layernorm k_layernorm", when=_normed),
        ),
        *under("ffn", "feed_forward", Modules("gate_proj up_proj down_proj", "w1 w3 w2")),
    )

    def full_layers(self, reader: ConfigReader, count: int) -> list[int]:
        kinds, given = reader.take("layer_types"), reader.take("full_attn_idxs")
        if kinds is None:
            return list(range(count)) if given is None else _indices(reader, "full_attn_idxs", count)
        if not isinstance(kinds, list) or len(kinds) != count or not set(kinds) <= {_FULL, "conv"}:
            raise ConfigError(
                f"config.layer_types: {kinds!r} is not allowed; use {_FULL} or conv for each of {count} layers"
            )
        return [index for index, kind in enumerate(kinds) if kind == _FULL]

    def their_full_layers(self, layers: list[int], count: int) -> dict[str, Any]:
        return {
            "full_attn_idxs": layers,
            "layer_types": [_FULL if index in layers else "conv" for index in range(count)],
        }


def _bamba_rope(given: dict[str, Any] | None, reader: ConfigReader) -> dict[str, Any]:
    rope = dict(given or reader.take("rope_scaling") or {})
    rope.setdefault("rope_theta", reader.take("rope_theta", 10000.0))
    rope.setdefault("partial_rotary_factor", 0.5)
    rope.setdefault("rope_type", rope.pop("type", "default"))
    return rope


def _mamba_heads(reader: ConfigReader) -> int:
    return reader.take("mamba_expand", 2) * reader.need("hidden_size") // reader.take("mamba_n_heads", 128)


SCAN_SIZES: tuple[Entry, ...] = (
    Option("mamba_d_state", "state_size", 256),
    Option("mamba_n_groups", "n_groups", 1),
    Option("mamba_d_conv", "conv_size", 4),
    Option("mamba_conv_bias", "conv_bias", True),
    Option("mamba_proj_bias", "proj_bias", False),
)
"""Of the Mamba-2 in hybrids, by the names that Bamba gave them."""


@FOREIGN.register("bamba")
class Bamba(TwoKinds):
    """`BambaForCausalLM`: Mamba-2 with attention, half of whose head is rotated."""

    other, other_class = "mamba2", StateSpaceDual
    defaults: ClassVar[dict[str, Any]] = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5}
    model_table = (
        *without(BLOCKS, "rope_parameters"),
        *HEADS,
        BIAS,
        Option("mlp_bias", default=False),
        Option("rope_parameters", read=_bamba_rope, write=lambda layer: dict(layer.config.rope_parameters or {})),
        only("z_loss_coefficient", 0.0),
        Unused("mamba_chunk_size num_logits_to_keep"),
    )
    other_options = (
        Option(
            "mamba_d_head",
            "head_dim",
            "auto",
            read=lambda given, reader: _mamba_heads(reader) if given == "auto" else given,
        ),
        Option(
            "mamba_n_heads",
            None,
            128,
            write=lambda layer: int(layer.mixer.expand * layer.config.hidden_size) // layer.mixer.head_dim,
        ),
        Option("mamba_expand", "expand", 2),
        *SCAN_SIZES,
        step_limits(),
    )
    model_tensors = (
        Modules("model.embed_tokens model.norm lm_head", "model.embed_tokens model.final_layernorm lm_head"),
    )
    layer_tensors = (
        Modules("mixer_norm ffn_norm", "input_layernorm pre_ff_layernorm"),
        *under("mixer", "self_attn", Modules("q_proj k_proj v_proj o_proj", when=attends, bias=attention_bias)),
        *when(is_scan, under("mixer", "mamba", *MIXER_TENSORS)),
        *under("ffn", "feed_forward", Modules("gate_proj up_proj down_proj", bias=lambda layer: layer.config.mlp_bias)),
    )

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        values = super().config_to_ours(reader)
        if values["hidden_act"] != "silu":  # the gate of their Mamba-2 has it too
            raise ConfigError(
                f"config.hidden_act: {reader.config['hidden_act']!r} is not supported by bamba; allowed: 'silu'"
            )
        return values

    def full_layers(self, reader: ConfigReader, count: int) -> list[int]:
        return _indices(reader, "attn_layer_indices", count)

    def their_full_layers(self, layers: list[int], count: int) -> dict[str, Any]:
        return {"attn_layer_indices": layers}
