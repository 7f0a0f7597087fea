"""FLA's layers that learn while they read: mesa_net, momentum_deltanet, also with softmax attention in some layers."""

from __future__ import annotations

from typing import Any, ClassVar

from ..core.registry import MIXERS
from .base import FOREIGN
from .fla import PROJECTIONS, SHORT_CONVS, FLAConverter
from .fla_delta import grouped_sizes
from .table import Layer, Modules, Option, Tensors, Unused, only

_GATED_NORM = (Modules("o_norm"), Modules("g_proj", when="use_output_gate"))


def _sizes(layer: Layer) -> Any:
    return MIXERS.get("mesa_net").head_sizes(layer.config, layer.mixer)


@FOREIGN.register("mesa_net")
class FLAMesaNet(FLAConverter):
    """FLA's MesaNet. Its kernels stop their conjugate gradients early; ours is the solution that they approximate."""

    architecture, mixer = "mesa_net", "mesa_net"
    grouped_heads = False
    model_options = (Option("head_dim"),)
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 16, "head_dim": 128}
    mixer_options = (
        Unused("use_short_conv max_cg_step_training max_cg_step_decoding"),  # it always has the convolutions
        Option("num_heads", write=lambda layer: _sizes(layer).num_heads),
        Option("head_dim", write=lambda layer: _sizes(layer).head_k_dim),
        Option("conv_size", default=4),
        Option("use_output_gate", default=False),
        Option("lambda_lower_bound", "lambda_min", 0.25),
    )
    mixer_tensors = (
        PROJECTIONS,
        *_GATED_NORM,
        Modules("q_conv k_conv", "q_conv1d k_conv1d"),
        Modules("a_proj b_proj", bias=True),
        Tensors("lambda_params"),
    )


@FOREIGN.register("momentum_deltanet")
class FLAMomentumDeltaNet(FLAConverter):
    """FLA's layer MomentumDeltaNet in the body of its Gated DeltaNet; the config is the layer's arguments and the
    body's, since FLA has no model of it."""

    architecture, mixer = "momentum_delta_net", "momentum_delta_net"
    grouped_heads = False
    model_options = (Option("head_dim"),)
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 4, "head_dim": 256, "expand_v": 2.0}
    mixer_options = (
        Unused("use_beta"),  # its layer always has it
        only("expand_k", 1.0, 1, written=True),
        only("conv_bias", False),
        *grouped_sizes("momentum_delta_net"),
        Option("use_short_conv", default=True),
        Option("conv_size", default=4),
        Option("use_gate", "use_output_gate", True),
        Option("allow_neg_eigval", default=False),
        Option("qk_activation", default="silu", allowed=("silu", "relu", "elu", "identity")),
        Option("qk_norm", default="l2", allowed=("l2", "sum")),
        Option("use_p_times_alpha", "decay_recall", True),
        Option("use_output_correction", "correct_query", True),
        Option(
            "min_log_mu",
            ("bound_mu", "min_log_mu"),
            -2.0,
            read=lambda value, _: (value is not None, -2.0 if value is None else value),
            write=lambda layer: layer.mixer.min_log_mu if layer.mixer.bound_mu else None,
        ),
        Option("tau_factor", default=1),
    )
    mixer_tensors = (
        PROJECTIONS,
        *_GATED_NORM,
        SHORT_CONVS,
        Modules("a_proj b_proj m_proj e_proj"),
        Tensors("A_log Mu_log log_factor dt_bias mu_bias"),
        Tensors("D_log", when="correct_query"),
    )
