"""flash-linear-attention (FLA) 0.6: lightnet, also with softmax attention in some layers, and mamba3."""

from __future__ import annotations

from typing import Any, ClassVar

from ..core.errors import ConfigError
from ..layers.mixers.base import divide
from ..layers.mixers.lightnet import LightNet
from .base import FOREIGN, Converter
from .fla import AFFINE, OUTPUT_NORM, PROJECTIONS, SHORT_CONV, SHORT_CONVS, FLAConverter, l2warp
from .mamba2 import NUM_HEADS
from .names import COMMON, FUSED
from .reader import ConfigReader
from .state_space import StateSpace
from .table import Entry, Layer, Modules, Option, Tensors, Unused, only, under


def _heads(given: int | None, reader: ConfigReader) -> int:
    ratio = reader.take("expand_ratio", 128)
    if given is not None:
        return given
    if ratio is None:
        raise ConfigError("config.num_heads: null and expand_ratio null is not allowed; use an integer >= 1")
    return divide(reader.need("hidden_size"), ratio, "config.expand_ratio", "hidden_size")


def _sizes(layer: Layer) -> Any:
    return LightNet.head_sizes(layer.config, layer.mixer)


@FOREIGN.register("lightnet")
class FLALightNet(FLAConverter):
    """FLA's LightNet; `num_heads` or `expand_ratio` decides the other, and the output norm ignores `norm_eps`."""

    architecture, mixer = "lightnet", "lightnet"
    grouped_heads = False
    heads = Option("num_heads", "num_attention_heads", read=_heads)
    defaults: ClassVar[dict[str, Any]] = {"expand_ratio": 128, "num_heads": None}
    mixer_options = (
        Option("num_heads", None, write=lambda layer: _sizes(layer).num_heads),
        Option("expand_ratio", default=128, write=lambda layer: _sizes(layer).head_k_dim),
        *SHORT_CONV,
        Option("gate_low_rank_dim", default=128),
        AFFINE,
    )
    mixer_tensors = (PROJECTIONS, Modules("gate_proj.0 gate_proj.1", "g_proj.0 g_proj.1"), SHORT_CONVS, OUTPUT_NORM)


@FOREIGN.register("mamba3")
class FLAMamba3(Converter):
    """FLA's Mamba-3."""

    architecture, mixer = "mamba3", "mamba3"
    model_options: ClassVar[tuple[Entry, ...]] = (
        FUSED,
        Unused("chunk_size residual_in_fp32"),
        only("hidden_act", "silu", "swish"),
        only("attnres_block_size", None),
        Option("vocab_size", default=32000),
        Option("hidden_size", required=True),
        Option("num_hidden_layers", default=48),
        Option("norm_eps", default=1e-5),
        Option("tie_word_embeddings", default=False),
        l2warp(),
        *COMMON,
    )
    mixer_options = (
        NUM_HEADS,
        Option("head_dim", default=64),
        Option("state_size", default=128),
        Option("expand", default=2),
        Option("n_groups", default=1),
        Option("rope_fraction", default=0.5),
        Option("A_floor", default=1e-4),
        Option("is_mimo", default=False),
        Option("mimo_rank", default=4),
        Option("is_outproj_norm", "use_norm", False),
        Option("use_bias", "proj_bias", False),
        Option("dt_min", default=1e-3),
        Option("dt_max", default=1e-1),
        Option("dt_init_floor", default=1e-4),
        Option("rescale_prenorm_residual", "rescale_out_proj", True),
    )
    model_tensors, their_layers = StateSpace.model_tensors, StateSpace.their_layers
    layer_tensors = (
        Modules("mixer_norm", "norm"),
        *under(
            "mixer",
            "mixer",
            Modules("in_proj out_proj", bias="proj_bias"),
            Tensors("dt_bias B_bias C_bias D"),
            Modules("B_norm C_norm"),
            Tensors("mimo_x mimo_z mimo_o", when="is_mimo"),
            Modules("norm", when="use_norm"),
        ),
    )
