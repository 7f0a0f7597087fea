"""FLA's log_linear_mamba2: Mamba-2's options and tensors in blocks with a gated MLP."""

from __future__ import annotations

from typing import Any, ClassVar

from ..models.configuration import ArchConfig
from .base import FOREIGN
from .fla import ATTENTION_RESIDUALS, GATED_MLP, RESIDUAL_HEAD, RESIDUAL_LAYER, gated_mlp
from .mamba2 import MIXER, MIXER_TENSORS, without_native_names
from .state_space import BLOCKS, StateSpace
from .table import Always, Entry, Modules, Option, Tensors, Unused, under

_LEVELS = 15
_WIDTH = next(entry for entry in gated_mlp(4, {}) if isinstance(entry, Option) and entry.theirs == "intermediate_size")


@FOREIGN.register("log_linear_mamba2")
class FLALogLinearMamba2(StateSpace):
    """FLA's Log-Linear Mamba-2, whose left padding moves the buckets; here padding changes nothing."""

    architecture, mixer = "log_linear_mamba2", "log_linear_mamba2"
    # Its feed-forward is not in its config: four times the width by the rule of all gated MLPs there.
    defaults: ClassVar[dict[str, Any]] = {"hidden_size": 2048, "num_hidden_layers": 48, "vocab_size": 32000}
    model_options: ClassVar[tuple[Entry, ...]] = (
        *BLOCKS,
        Unused("chunk_size hidden_ratio"),
        Option("tie_word_embeddings", default=False),
        ATTENTION_RESIDUALS,
        Always("ffn", "glu"),
        Option("intermediate_size", read=_WIDTH.read, write=_WIDTH.write),
    )
    mixer_options = (*MIXER, Always("num_levels", _LEVELS))
    model_tensors = (*StateSpace.model_tensors, *under("model", "backbone", RESIDUAL_HEAD))
    layer_tensors = (
        Modules("mixer_norm ffn_norm", "mixer_norm mlp_norm"),
        *under("mixer", "mixer", *MIXER_TENSORS, Tensors("L")),
        *GATED_MLP,
        RESIDUAL_LAYER,
    )

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        return without_native_names(super().config_to_theirs(config))
