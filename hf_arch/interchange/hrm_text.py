"""transformers' `HrmTextForCausalLM`: two modules of Llama's blocks in cycles, with gated attention."""

from __future__ import annotations

from typing import Any, ClassVar

from ..models.configuration import ArchConfig
from .base import FOREIGN
from .directions import layers_of, options_to_ours, options_to_theirs, tensor_rules
from .reader import WHOLE, ConfigReader
from .rules import Rule, same
from .table import Always, Entry, Modules, Option, only, under
from .transformers_dense import BLOCKS, LlamaBlocks
from .transformers_variants import without


def _trained(given: list[int] | None, reader: ConfigReader) -> list[int] | None:
    """How many low cycles of each slow one gradients go through, None where it is all of them."""
    low, high = reader.take("L_cycles", 3), reader.take("H_cycles", 2)
    kept = [min(each, low) for each in (given or [2])[:high]]
    return None if len(kept) == high and set(kept) == {low} else kept


@FOREIGN.register("hrm_text")
class HrmText(LlamaBlocks):
    """See above. Their `prefix_lm` lets tokens of type 1 see each other both ways wherever they are, ours those of a
    prefix; a call without token types is causal in both."""

    architecture = "llama"
    defaults: ClassVar[dict[str, Any]] = {"head_dim": 128}
    model_options: ClassVar[tuple[Entry, ...]] = (
        *without(BLOCKS, "num_hidden_layers"),
        Option("head_dim", write=lambda layer: layer.effective.get("heads", (None,) * 3)[2]),
        Option("mlp_bias", default=False),
        only("attention_bias", False),  # of another one the gate has a bias as well
        Option("prefix_lm", default=True),
        Option(
            "embedding_scale",
            "embedding_multiplier",
            read=lambda scale, reader: 1 / reader.take("initializer_range", 0.02) if scale is None else scale,
        ),
        Always("norm", "rmsnorm_weightless"),
        Always("mixer", {"type": "attention", "output_gate": "elementwise"}),
    )
    cycle_options: ClassVar[tuple[Entry, ...]] = (
        Option("L_cycles", "low_cycles", 3, kind=WHOLE),
        Option("H_cycles", "high_cycles", 2, kind=WHOLE),
        Option("L_bp_cycles", "trained", read=_trained),
    )
    model_tensors = (Modules("model.embed_tokens lm_head"),)
    layer_tensors = (
        *under(
            "mixer", "self_attn", Modules("q_proj k_proj v_proj o_proj g_proj", "q_proj k_proj v_proj o_proj gate_proj")
        ),
        *under("ffn", "mlp", Modules("gate_proj up_proj down_proj", bias=lambda layer: layer.config.mlp_bias)),
    )

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        values = {"architecture": self.architecture, **options_to_ours(self.model_options, reader)}
        # Their number of layers counts the runs, unless it is a config that does not have the other yet.
        runs, layers = reader.need("num_hidden_layers"), reader.take("num_layers_per_stack", kind=WHOLE)
        depth = {"type": "cycles", **options_to_ours(self.cycle_options, reader)}
        return {**values, "num_hidden_layers": 2 * (runs if layers is None else layers), "depth": depth}

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        layers = layers_of(config)
        _, depth = config.depth_spec
        theirs = {**options_to_theirs(self.model_options, layers[0], config)}
        if not hasattr(depth, "low_cycles"):
            return {**theirs, "num_hidden_layers": len(layers) // 2 or 1}
        stack, low, high = len(layers) // 2, depth.low_cycles, depth.high_cycles
        return {
            **theirs,
            **options_to_theirs(self.cycle_options, layers[0], depth),
            "L_bp_cycles": [low] * high if depth.trained is None else depth.trained,
            "num_layers_per_stack": stack,
            "num_hidden_layers": stack * high * (low + 1),
        }

    def rules(self, config: ArchConfig, foreign: dict[str, Any]) -> list[Rule]:
        layers = layers_of(config, foreign)
        rules = [*tensor_rules(self.model_tensors, layers[0]), same("model.depth.low_start", "model.z_L_init")]
        half = len(layers) // 2
        for layer in layers:
            module = f"model.{'LH'[layer.index >= half]}_module.layers.{layer.index % half}"
            rules += tensor_rules(under(f"model.layers.{layer.index}", module, *self.layer_tensors), layer)
        return rules
