"""FLA's later delta rules: kda, gated_deltaproduct, comba, gdn2 and the preconditioned two, also with softmax attention
in some layers. Each is a table of options and one of tensors, read in both directions."""

from __future__ import annotations

from typing import Any, ClassVar

from ..core.registry import MIXERS
from ..models.configuration import ArchConfig
from .base import FOREIGN, Rule, same
from .fla import FLAConverter, short_conv_rules
from .reader import ConfigReader

_SHARED: dict[str, tuple[str, Any]] = {
    "use_short_conv": ("use_short_conv", True),
    "conv_size": ("conv_size", 4),
}
_NEGATIVE: dict[str, tuple[str, Any]] = {"allow_neg_eigval": ("allow_neg_eigval", False)}
_GATED: dict[str, tuple[str, Any]] = {"use_output_gate": ("use_output_gate", True)}
_DECAY = ("A_log", "dt_bias")
_LOW_RANK = ("f_proj.0.weight", "f_proj.1.weight", "g_proj.0.weight", "g_proj.1.weight", "g_proj.1.bias")


class FLADeltaFamily(FLAConverter):
    """What they share: heads of their own width, grouped values, short convolutions, a gated output norm."""

    grouped_heads = False
    options: ClassVar[dict[str, tuple[str, Any]]]
    """Our option: their name of it, and their default."""
    tensors: ClassVar[tuple[str, ...]]
    """Parameters of the mixer besides the projections, convolutions and norm that all have; those of an output gate
    that is switched off are left out."""
    grouped_values: ClassVar[bool] = True
    """Whether their config has `num_v_heads`."""

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        values = super().config_to_ours(reader)
        return {**values, "head_dim": reader.take("head_dim")}

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        sizes = {name: reader.take(name) for name in ("num_heads", "head_dim", "expand_v")}
        if self.grouped_values:
            sizes["num_v_heads"] = reader.take("num_v_heads")
        return {**sizes, **{ours: reader.take(*theirs) for ours, theirs in self.options.items()}}

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        sizes = MIXERS.get(self.mixer).head_sizes(config, options)
        return {
            "num_heads": sizes.num_kv_heads,
            "head_dim": sizes.head_k_dim,
            "expand_v": sizes.head_v_dim / sizes.head_k_dim,
            **({"num_v_heads": sizes.num_heads} if self.grouped_values else {}),
            **{theirs: getattr(options, ours) for ours, (theirs, _) in self.options.items()},
        }

    def own_tensors(self, options: Any) -> tuple[str, ...]:
        """`tensors`, as far as these options have them."""
        return tuple(name for name in self.tensors if options.use_output_gate or not name.startswith("g_proj."))

    def mixer_rules(
        self, config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str
    ) -> list[Rule]:
        shared = (f"{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "b_proj", "o_proj", "o_norm"))
        rules = [same(f"{ours}.{name}", f"{theirs}.{name}") for name in (*shared, *self.own_tensors(options))]
        return rules + (short_conv_rules(ours, theirs) if options.use_short_conv else [])


@FOREIGN.register("kda")
class FLAKDA(FLADeltaFamily):
    """FLA's Kimi Delta Attention."""

    architecture, mixer = "kda", "kda"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 16, "head_dim": 128, "expand_v": 1.0}
    options: ClassVar = {**_SHARED, **_NEGATIVE, "lower_bound": ("lower_bound", None)}
    tensors: ClassVar[tuple[str, ...]] = (*_DECAY, *_LOW_RANK)

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        reader.dead("safe_gate")  # it chooses a kernel; the bound alone decides what the gate is
        return super().mixer_to_ours(reader)

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        return {**super().mixer_to_theirs(config, options), "safe_gate": options.lower_bound is not None}


@FOREIGN.register("gated_deltaproduct")
class FLAGatedDeltaProduct(FLADeltaFamily):
    """FLA's Gated DeltaProduct, whose model passes no `num_v_heads` on."""

    architecture, mixer, grouped_values = "gated_delta_product", "gated_delta_product", False
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 6, "head_dim": 256, "expand_v": 2.0}
    options: ClassVar = {
        **_SHARED,
        **_GATED,
        **_NEGATIVE,
        "num_householder": ("num_householder", 1),
        "use_forget_gate": ("use_forget_gate", False),
    }
    tensors: ClassVar[tuple[str, ...]] = (*_DECAY, "a_proj.weight", "g_proj.weight")

    def own_tensors(self, options: Any) -> tuple[str, ...]:
        decay = () if options.use_forget_gate else (*_DECAY, "a_proj.weight")
        return tuple(name for name in super().own_tensors(options) if name not in decay)


@FOREIGN.register("comba")
class FLAComba(FLADeltaFamily):
    """FLA's Comba."""

    architecture, mixer = "comba", "comba"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 6, "head_dim": 256, "expand_v": 2.0}
    options: ClassVar = {**_SHARED, **_GATED}
    tensors: ClassVar[tuple[str, ...]] = (*_DECAY, "a_proj.weight", "g_proj.weight", "decay", "D")

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        reader.dead("use_output_correction", "use_inner_decay", "correction_factor")  # they never reach FLA's layer
        return super().mixer_to_ours(reader)


@FOREIGN.register("gdn2")
class FLAGatedDeltaNet2(FLADeltaFamily):
    """FLA's layer GatedDeltaNet2 in the body of its Gated DeltaNet; the config is the layer's arguments and the
    body's, since FLA has no model of it."""

    architecture, mixer = "gdn2", "gdn2"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 16, "head_dim": 128, "expand_v": 1.0}
    options: ClassVar = {**_SHARED, **_NEGATIVE}
    tensors: ClassVar[tuple[str, ...]] = (*_DECAY, *_LOW_RANK, "w_proj.weight")


class FLAPreconditioned(FLADeltaFamily):
    """The preconditioned delta rules."""

    options: ClassVar = {
        **_SHARED,
        **_NEGATIVE,
        "squash_x": ("squash_x", 1.5),
        "squash_eps": ("squash_eps", 1e-6),
        "log_atk_scale_init": ("log_atk_scale_init", -0.2),
    }
    tensors: ClassVar[tuple[str, ...]] = (
        *_DECAY,
        "a_proj.weight",
        "b_atk_proj.weight",
        "A_log_atk",
        "dt_bias_atk",
        "log_atk_scale",
    )


@FOREIGN.register("precond_gated_deltanet")
class FLAPrecondGatedDeltaNet(FLAPreconditioned):
    """FLA's preconditioned Gated DeltaNet."""

    architecture, mixer = "precond_gated_delta_net", "precond_gated_delta_net"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 6, "head_dim": 256, "expand_v": 2.0}
    options: ClassVar = {
        **FLAPreconditioned.options,
        "use_output_gate": ("use_gate", True),
        "A_min": ("a_log_init_lower", 0),
    }
    tensors: ClassVar[tuple[str, ...]] = (*FLAPreconditioned.tensors, "a_atk_proj.weight", "g_proj.weight")


@FOREIGN.register("precond_kda")
class FLAPrecondKDA(FLAPreconditioned, FLAKDA):
    """FLA's preconditioned Kimi Delta Attention."""

    architecture, mixer = "precond_kda", "precond_kda"
    options: ClassVar = {
        **FLAPreconditioned.options,
        "lower_bound": ("lower_bound", None),
        "A_min": ("a_log_init_lower", 1),
    }
    tensors: ClassVar[tuple[str, ...]] = (*FLAPreconditioned.tensors, *_LOW_RANK)
