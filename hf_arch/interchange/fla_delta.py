"""FLA's delta-rule families: delta_net and gated_deltanet, also with softmax attention in some layers."""

from __future__ import annotations

from typing import Any, ClassVar

from ..layers.mixers.gated_delta_net import GatedDeltaNet
from ..models.configuration import ArchConfig
from .base import FOREIGN, Rule, same
from .fla import FLAConverter, short_conv_rules
from .reader import ConfigReader

_GATE_ACTIVATIONS = {"swish": "silu", "silu": "silu", "sigmoid": "sigmoid"}


class FLADeltaRule(FLAConverter):
    """What the two share: heads without groups, short convolutions, an output norm that may be gated."""

    grouped_heads = False

    def mixer_rules(
        self, config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str
    ) -> list[Rule]:
        names = [f"{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "o_norm")]
        names += ["g_proj.weight"] if options.use_output_gate else []
        rules = [same(f"{ours}.{name}", f"{theirs}.{name}") for name in (*names, *self.own_names(options))]
        return rules + (short_conv_rules(ours, theirs) if options.use_short_conv else [])

    def own_names(self, options: Any) -> tuple[str, ...]:
        """Tensors that only this family has."""
        raise NotImplementedError


@FOREIGN.register("delta_net")
class FLADeltaNet(FLADeltaRule):
    """FLA's DeltaNet."""

    architecture, mixer = "delta_net", "delta_net"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 16}

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        reader.dead("use_output_norm")  # the output is normed either way
        return {
            "expand_k": reader.take("expand_k", 1.0),
            "expand_v": reader.take("expand_v", 1.0),
            "use_short_conv": reader.take("use_short_conv", True),
            "conv_size": reader.take("conv_size", 4),
            "use_beta": reader.take("use_beta", True),
            "use_output_gate": reader.take("use_gate", False),
            "qk_activation": reader.only("qk_activation", ["silu", "relu", "elu", "identity"], "silu"),
            "qk_norm": reader.only("qk_norm", ["l2", "sum"], "l2"),
            "allow_neg_eigval": reader.take("allow_neg_eigval", False),
        }

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        names = ("expand_k", "expand_v", "use_short_conv", "conv_size", "use_beta", "qk_activation", "qk_norm")
        return {
            **{name: getattr(options, name) for name in names},
            "use_gate": options.use_output_gate,
            "allow_neg_eigval": options.allow_neg_eigval,
        }

    def own_names(self, options: Any) -> tuple[str, ...]:
        return ("b_proj.weight",) if options.use_beta else ()


@FOREIGN.register("gated_deltanet")
class FLAGatedDeltaNet(FLADeltaRule):
    """FLA's Gated DeltaNet."""

    architecture, mixer = "gated_delta_net", "gated_delta_net"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 6}
    ignored_keys = (".attn.D",)  # of checkpoints from early 2025; their layer does not read it

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        return {**super().config_to_ours(reader), "head_dim": reader.take("head_dim", 256)}

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        return {
            "num_heads": reader.take("num_heads"),
            "head_dim": reader.take("head_dim", 256),
            "num_v_heads": reader.take("num_v_heads"),
            "expand_v": reader.take("expand_v", 2.0),
            "use_short_conv": reader.take("use_short_conv", True),
            "conv_size": reader.take("conv_size", 4),
            "use_output_gate": reader.take("use_gate", True),
            "gate_activation": _GATE_ACTIVATIONS[reader.only("output_gate_activation", _GATE_ACTIVATIONS, "swish")],
            "allow_neg_eigval": reader.take("allow_neg_eigval", False),
        }

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        sizes = GatedDeltaNet.head_sizes(config, options)
        return {
            "num_heads": sizes.num_kv_heads,
            "head_dim": sizes.head_k_dim,
            "num_v_heads": sizes.num_heads,
            "expand_v": sizes.head_v_dim / sizes.head_k_dim,
            "use_short_conv": options.use_short_conv,
            "conv_size": options.conv_size,
            "use_gate": options.use_output_gate,
            "output_gate_activation": options.gate_activation,
            "allow_neg_eigval": options.allow_neg_eigval,
        }

    def own_names(self, options: Any) -> tuple[str, ...]:
        return ("A_log", "dt_bias", "a_proj.weight", "b_proj.weight")
