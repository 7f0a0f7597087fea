"""Mamba checkpoints: transformers' `MambaForCausalLM` and FLA's, which share keys and differ in some option names."""

from __future__ import annotations

from typing import Any, ClassVar

from ..models.configuration import ArchConfig
from .base import FOREIGN, Converter
from .fla import l2warp
from .names import COMMON, FUSED, SIZES
from .reader import ConfigReader
from .table import Entry, Modules, Option, Tensors, Unused, only, under

BLOCKS: tuple[Entry, ...] = (
    FUSED,
    Unused("residual_in_fp32"),
    Option("vocab_size", required=True),
    *SIZES,
    # Of another one the gate gets none in transformers, and in FLA on a GPU, but does in FLA on a CPU.
    only("hidden_act", "silu", "swish", written=True),
    Option(("layer_norm_epsilon", "norm_eps"), "norm_eps", 1e-5),
    l2warp(),
    *COMMON,
)
STEP_SIZES = (
    Option(("time_step_min", "dt_min"), "dt_min", 1e-3),
    Option(("time_step_max", "dt_max"), "dt_max", 1e-1),
    Option(("time_step_floor", "dt_init_floor"), "dt_init_floor", 1e-4),
)
"""What shapes the initial step sizes, by transformers' name and FLA's."""
WIDTHS = (
    Modules("conv", "conv1d", bias="conv_bias"),
    Modules("in_proj out_proj", bias="proj_bias"),
)
BIASES = (Option("use_conv_bias", "conv_bias", True), Option("use_bias", "proj_bias", False))


class StateSpace(Converter):
    """What Mamba and Mamba-2 share."""

    model_options: ClassVar[tuple[Entry, ...]]
    model_tensors: ClassVar[tuple[Tensors, ...]] = (
        Modules("model.embed_tokens model.norm lm_head", "backbone.embeddings backbone.norm_f lm_head"),
    )
    their_layers = "backbone.layers"

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        theirs = super().config_to_theirs(config)
        if not theirs["use_l2warp"]:
            del theirs["use_l2warp"]  # transformers has no such option
        return theirs


def _native(reader: ConfigReader) -> bool:
    steps = ("time_step_scale", *(option.names[0] for option in STEP_SIZES))
    return any(name in reader.config for name in ("layer_norm_epsilon", "use_mambapy", *steps))


def _rank(rank: Any, reader: ConfigReader) -> int:
    return -(-reader.need("hidden_size") // 16) if rank in ("auto", None) else rank


@FOREIGN.register("mamba")
class Mamba(StateSpace):
    """Mamba-1; a config is read as transformers' where it has transformers' names, and written with both."""

    architecture, mixer = "mamba", "mamba"
    model_options = (
        *BLOCKS,
        Unused("rescale_prenorm_residual use_associative_scan use_mambapy time_step_init_scheme dt_init_scheme"),
        only("use_falcon_mambapy", False),
        Option("tie_word_embeddings", default=_native),
    )
    mixer_options = (
        Option("state_size", default=16),
        Option("expand", default=2),
        Option(
            "intermediate_size", None, write=lambda layer: int((layer.mixer.expand or 2) * layer.config.hidden_size)
        ),
        Option("conv_kernel", "conv_size", 4),
        Option(
            ("time_step_rank", "dt_rank"),
            "dt_rank",
            "auto",
            read=_rank,
            write=lambda layer: layer.mixer.dt_rank or -(-layer.config.hidden_size // 16),
        ),
        *BIASES,
        Option(("time_step_scale", "dt_scale"), "dt_scale", 1.0),
        *STEP_SIZES,
    )
    layer_tensors = (
        Modules("mixer_norm", "norm"),
        *under("mixer", "mixer", Tensors("A_log D"), Modules("x_proj"), Modules("dt_proj", bias=True), *WIDTHS),
    )
