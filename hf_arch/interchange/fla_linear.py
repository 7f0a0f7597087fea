"""flash-linear-attention (FLA) 0.6, the gated linear-attention families: hgrn2."""

from __future__ import annotations

from typing import Any

from ..mixers.hgrn2 import GatedStateExpansion
from ..modeling.configuration import ArchConfig
from .base import FOREIGN, ConfigReader, Rule, parts, same
from .fla import FLAConverter


@FOREIGN.register("hgrn2")
class FLAHGRN2(FLAConverter):
    """FLA's HGRN2; its `expand_ratio` decides the number of heads, and the output norm ignores `norm_eps`."""

    architecture, mixer = "hgrn2", "hgrn2"

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        values = super().config_to_ours(reader)
        ratio = reader.take("expand_ratio", 128)
        if ratio is not None:
            heads = values["hidden_size"] // ratio
            values.update(num_attention_heads=heads, num_key_value_heads=heads)
        return values

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        return {
            "expand_ratio": reader.take("expand_ratio", 128),
            "use_short_conv": reader.take("use_short_conv", False),
            "conv_size": reader.take("conv_size", 4),
            "use_lower_bound": reader.take("use_lower_bound", True),
            "output_norm_affine": reader.take("elementwise_affine", True) is not False,
        }

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        sizes = GatedStateExpansion.head_sizes(config, options)
        return {
            "num_heads": sizes.num_heads,
            "expand_ratio": sizes.head_k_dim,
            "use_short_conv": options.use_short_conv,
            "conv_size": options.conv_size,
            "use_lower_bound": options.use_lower_bound,
            "elementwise_affine": options.output_norm_affine,
        }

    def mixer_rules(
        self, config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str
    ) -> list[Rule]:
        names = {"q": "q", "k": "f", "v": "i", "o": "o"}
        rules = [same(f"{ours}.{own}_proj.weight", f"{theirs}.{their}_proj.weight") for own, their in names.items()]
        if options.use_short_conv:
            rules += [
                same(f"{ours}.{own}_conv.weight", f"{theirs}.{names[own]}_conv1d.weight") for own in ("q", "k", "v")
            ]
        if options.output_norm_affine:
            rules += parts(f"{ours}.o_norm", f"{theirs}.g_norm")
        return rules

    def model_rules(self, config: ArchConfig) -> list[Rule]:
        return lower_bound_rules(config)


def lower_bound_rules(config: ArchConfig) -> list[Rule]:
    """The bounds of all layers' gates."""
    bounded = any(getattr(options, "use_lower_bound", False) for _, options in config.mixer_specs)
    return [same("model.shared.0.logits", "model.lower_bounds")] if bounded else []
