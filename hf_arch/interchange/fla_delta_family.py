"""FLA's later delta rules: kda, gated_deltaproduct, comba, gdn2 and the preconditioned two, also with softmax attention
in some layers."""

from __future__ import annotations

from typing import Any, ClassVar

from .base import FOREIGN
from .fla import PROJECTIONS, SHORT_CONVS, FLAConverter
from .fla_delta import NEGATIVE, SHORT_CONV, grouped_sizes
from .table import Entry, Modules, Option, Tensors, Unused

_OUTPUT_GATE = Option("use_output_gate", default=True)
_LOWER_BOUND = (
    Option("lower_bound"),
    # It chooses a kernel; the bound alone decides what the gate is.
    Option("safe_gate", None, write=lambda layer: layer.mixer.lower_bound is not None),
)
_PRECONDITIONER: tuple[Entry, ...] = (
    *SHORT_CONV,
    NEGATIVE,
    Option("squash_x", default=1.5),
    Option("squash_eps", default=1e-6),
    Option("log_atk_scale_init", default=-0.2),
)

_COMMON_TENSORS: tuple[Tensors, ...] = (PROJECTIONS, Modules("b_proj o_norm"), SHORT_CONVS)
_DECAY_TENSORS = Tensors("A_log dt_bias")
_GATE_TENSORS = Modules("g_proj", when="use_output_gate")
_LOW_RANK_TENSORS: tuple[Tensors, ...] = (
    Modules("f_proj.0 f_proj.1"),
    Modules("g_proj.0", when="use_output_gate"),
    Modules("g_proj.1", when="use_output_gate", bias=True),
)
_PRECONDITIONER_TENSORS: tuple[Tensors, ...] = (
    *_COMMON_TENSORS,
    _DECAY_TENSORS,
    Modules("a_proj b_atk_proj"),
    Tensors("A_log_atk dt_bias_atk log_atk_scale"),
)

_WIDE_VALUES: dict[str, Any] = {"num_heads": 6, "head_dim": 256, "expand_v": 2.0}
_EQUAL_WIDTHS: dict[str, Any] = {"num_heads": 16, "head_dim": 128, "expand_v": 1.0}


class FLADeltaFamily(FLAConverter):
    """Heads of their own width."""

    grouped_heads = False
    model_options = (Option("head_dim"),)


@FOREIGN.register("kda")
class FLAKDA(FLADeltaFamily):
    """FLA's Kimi Delta Attention."""

    architecture, mixer = "kda", "kda"
    defaults: ClassVar[dict[str, Any]] = _EQUAL_WIDTHS
    mixer_options = (*grouped_sizes("kda"), *SHORT_CONV, NEGATIVE, *_LOWER_BOUND)
    mixer_tensors = (*_COMMON_TENSORS, _DECAY_TENSORS, *_LOW_RANK_TENSORS)


@FOREIGN.register("gated_deltaproduct")
class FLAGatedDeltaProduct(FLADeltaFamily):
    """FLA's Gated DeltaProduct, whose model passes no `num_v_heads` on."""

    architecture, mixer = "gated_delta_product", "gated_delta_product"
    defaults: ClassVar[dict[str, Any]] = _WIDE_VALUES
    mixer_options = (
        *grouped_sizes("gated_delta_product", grouped_values=False),
        *SHORT_CONV,
        _OUTPUT_GATE,
        NEGATIVE,
        Option("num_householder", default=1),
        Option("use_forget_gate", default=False),
    )
    mixer_tensors = (
        *_COMMON_TENSORS,
        Tensors("A_log dt_bias a_proj.weight", when="use_forget_gate"),
        _GATE_TENSORS,
    )


@FOREIGN.register("comba")
class FLAComba(FLADeltaFamily):
    """FLA's Comba."""

    architecture, mixer = "comba", "comba"
    defaults: ClassVar[dict[str, Any]] = _WIDE_VALUES
    mixer_options = (
        Unused("use_output_correction use_inner_decay correction_factor"),  # they never reach FLA's layer
        *grouped_sizes("comba"),
        *SHORT_CONV,
        _OUTPUT_GATE,
    )
    mixer_tensors = (*_COMMON_TENSORS, _DECAY_TENSORS, Modules("a_proj"), _GATE_TENSORS, Tensors("decay D"))


@FOREIGN.register("gdn2")
class FLAGatedDeltaNet2(FLADeltaFamily):
    """FLA's layer GatedDeltaNet2 in the body of its Gated DeltaNet; the config is the layer's arguments and the
    body's, since FLA has no model of it."""

    architecture, mixer = "gdn2", "gdn2"
    defaults: ClassVar[dict[str, Any]] = _EQUAL_WIDTHS
    mixer_options = (*grouped_sizes("gdn2"), *SHORT_CONV, NEGATIVE)
    mixer_tensors = (*_COMMON_TENSORS, _DECAY_TENSORS, *_LOW_RANK_TENSORS, Modules("w_proj"))


@FOREIGN.register("precond_gated_deltanet")
class FLAPrecondGatedDeltaNet(FLADeltaFamily):
    """FLA's preconditioned Gated DeltaNet."""

    architecture, mixer = "precond_gated_delta_net", "precond_gated_delta_net"
    defaults: ClassVar[dict[str, Any]] = _WIDE_VALUES
    mixer_options = (
        *grouped_sizes("precond_gated_delta_net"),
        *_PRECONDITIONER,
        Option("use_gate", "use_output_gate", True),
        Option("a_log_init_lower", "A_min", 0),
    )
    mixer_tensors = (*_PRECONDITIONER_TENSORS, Modules("a_atk_proj"), _GATE_TENSORS)


@FOREIGN.register("precond_kda")
class FLAPrecondKDA(FLADeltaFamily):
    """FLA's preconditioned Kimi Delta Attention."""

    architecture, mixer = "precond_kda", "precond_kda"
    defaults: ClassVar[dict[str, Any]] = _EQUAL_WIDTHS
    mixer_options = (
        *grouped_sizes("precond_kda"),
        *_PRECONDITIONER,
        *_LOWER_BOUND,
        Option("a_log_init_lower", "A_min", 1),
    )
    mixer_tensors = (*_PRECONDITIONER_TENSORS, *_LOW_RANK_TENSORS)
