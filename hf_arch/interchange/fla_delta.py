"""FLA's delta-rule families: delta_net and gated_deltanet, also with softmax attention in some layers."""

from __future__ import annotations

from typing import Any, ClassVar

from ..core.registry import MIXERS
from .base import FOREIGN
from .fla import EXPAND, PROJECTIONS, SHORT_CONVS, FLAConverter
from .table import Layer, Modules, Option, Tensors, Unused

SHORT_CONV = (Option("use_short_conv", default=True), Option("conv_size", default=4))
NEGATIVE = Option("allow_neg_eigval", default=False)
DELTA_TENSORS = (PROJECTIONS, Modules("o_norm"), Modules("g_proj", when="use_output_gate"), SHORT_CONVS)

DECAY_TENSORS = (Tensors("A_log dt_bias"), Modules("a_proj b_proj"))


@FOREIGN.register("delta_net")
class FLADeltaNet(FLAConverter):
    """FLA's DeltaNet."""

    architecture, mixer = "delta_net", "delta_net"
    grouped_heads = False
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 16}
    mixer_options = (
        Unused("use_output_norm"),  # the output is normed either way
        *EXPAND,
        *SHORT_CONV,
        Option("use_beta", default=True),
        Option("use_gate", "use_output_gate", False),
        Option("qk_activation", default="silu", allowed=("silu", "relu", "elu", "identity")),
        Option("qk_norm", default="l2", allowed=("l2", "sum")),
        NEGATIVE,
    )
    mixer_tensors = (*DELTA_TENSORS, Modules("b_proj", when="use_beta"))


def grouped_sizes(mixer: str, *, grouped_values: bool = True) -> tuple[Option, ...]:
    """The sizes of heads of a gated delta rule, which its own options or the config's decide; without
    `grouped_values` there is no `num_v_heads`."""

    def sizes(layer: Layer) -> Any:
        return MIXERS.get(mixer).head_sizes(layer.config, layer.mixer)

    return (
        Option("num_heads", write=lambda layer: sizes(layer).num_kv_heads),
        Option("head_dim", default=256, write=lambda layer: sizes(layer).head_k_dim),
        *((Option("num_v_heads", write=lambda layer: sizes(layer).num_heads),) if grouped_values else ()),
        Option("expand_v", default=2.0, write=lambda layer: sizes(layer).head_v_dim / sizes(layer).head_k_dim),
    )


@FOREIGN.register("gated_deltanet")
class FLAGatedDeltaNet(FLAConverter):
    """FLA's Gated DeltaNet."""

    architecture, mixer = "gated_delta_net", "gated_delta_net"
    grouped_heads = False
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 6}
    ignored_keys = (".attn.D",)  # of checkpoints from early 2025; their layer does not read it
    model_options = (Option("head_dim", default=256),)
    mixer_options = (
        *grouped_sizes("gated_delta_net"),
        *SHORT_CONV,
        Option("use_gate", "use_output_gate", True),
        Option(
            "output_gate_activation",
            "gate_activation",
            "swish",
            allowed={"silu": "silu", "swish": "silu", "sigmoid": "sigmoid"},
        ),
        NEGATIVE,
    )
    mixer_tensors = (*DELTA_TENSORS, *DECAY_TENSORS)
