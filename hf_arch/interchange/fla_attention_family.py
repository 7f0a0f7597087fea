"""FLA's further attentions: forgetting_transformer, path_attn, stickbreaking_attn, nsa and moba, each by two tables
(options, modules) that are read in both directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from ..core.registry import MIXERS
from ..models.configuration import ArchConfig
from .base import FOREIGN, Rule, parts
from .fla import FLAConverter
from .reader import ConfigReader


class Option(NamedTuple):
    """Their key, our option, their default, their only values (None: any), ours for each of theirs (None: equal)."""

    theirs: str
    ours: str
    default: Any
    allowed: tuple[Any, ...] | None = None
    values: dict[Any, Any] | None = None


class Module(NamedTuple):
    """Our module, theirs, the names of its tensors, and when it is there."""

    ours: str
    theirs: str
    tensors: tuple[str, ...] = ("weight",)
    present: Callable[[Any], bool] = lambda options: True


_BIAS = Option("qkv_bias", "qkv_bias", False)
_QK_NORM = Option("qk_norm", "qk_norm", False)
_THETA = Option("rope_theta", "rope_theta", 10000.0)


class FLAAttentionFamily(FLAConverter):
    """A family said by its tables; projections, their biases and QK-norm are common to all."""

    options: ClassVar[tuple[Option, ...]]
    modules: ClassVar[tuple[Module, ...]] = ()
    dead: ClassVar[tuple[str, ...]] = ("elementwise_affine",)
    constants: ClassVar[dict[str, Any]] = {}
    """Options of ours that have one value there."""

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        reader.dead(*self.dead)
        values = {"out_bias": False, **self.constants}
        for theirs, ours, default, allowed, names in self.options:
            value = reader.take(theirs, default)
            value = default if value is None else value
            if allowed is not None:
                reader.only(theirs, allowed, default)
            values[ours] = value if names is None else names[value]
        return values

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        effective = MIXERS.get(self.mixer).effective(config, options)
        resolved = {
            "qkv_bias": effective["qkv_bias"],
            "qk_norm": effective["qk_norm"] is not None,
            "head_dim": effective["heads"][2],
            "rope_theta": getattr(options, "rope_theta", None)
            or (config.rope_parameters or {}).get("rope_theta", 10000.0),
        }
        found = {}
        for theirs, ours, _, _, names in self.options:
            value = resolved.get(ours, getattr(options, ours))
            found[theirs] = value if names is None else {b: a for a, b in names.items()}.get(value)
        return found

    def mixer_rules(
        self, config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str
    ) -> list[Rule]:
        effective = MIXERS.get(self.mixer).effective(config, options)
        projection = ("weight", "bias") if effective["qkv_bias"] else ("weight",)
        modules = [Module(name, name, projection) for name in ("q_proj", "k_proj", "v_proj")]
        modules.append(Module("o_proj", "o_proj"))
        if effective["qk_norm"] is not None:
            modules += [Module(name, name) for name in ("q_norm", "k_norm")]
        modules += [module for module in self.modules if module.present(options)]
        return [
            rule
            for module in modules
            for rule in parts(f"{ours}.{module.ours}", f"{theirs}.{module.theirs}", module.tensors)
        ]


@FOREIGN.register("forgetting_transformer")
class FLAForgettingTransformer(FLAAttentionFamily):
    """FLA's Forgetting Transformer, whose `window_size` cuts its cache and nothing else."""

    architecture = mixer = "forgetting_transformer"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 32}
    dead = ("elementwise_affine", "window_size")
    constants: ClassVar[dict[str, Any]] = {"window": 0, "qk_norm_eps": 1e-5}
    options = (
        _BIAS,
        _QK_NORM,
        Option("use_output_gate", "output_gate", False, None, {False: "none", True: "elementwise"}),
    )
    modules = (
        Module("f_proj", "f_proj", ("weight", "bias")),
        Module("g_proj", "g_proj", present=lambda options: options.output_gate != "none"),
    )


@FOREIGN.register("path_attn")
class FLAPathAttention(FLAAttentionFamily):
    """FLA's PaTH attention; the sizes of its low rank and convolution are not in its config."""

    architecture = mixer = "path_attention"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 32}
    constants: ClassVar[dict[str, Any]] = {"qkv_bias": False, "low_rank": 32, "conv_size": 3}
    options = (
        Option("use_forget_gate", "forget_gate", False),
        Option("use_w_shortconv", "use_short_conv", True),
        Option("use_low_rank_w", "use_low_rank", True),
    )
    modules = (
        Module("w_proj.0", "w_proj.0", present=lambda options: options.use_low_rank),
        Module("w_proj.1", "w_proj.1", present=lambda options: options.use_low_rank),
        Module("w_proj", "w_proj", present=lambda options: not options.use_low_rank),
        Module("w_conv", "w_conv1d", present=lambda options: options.use_short_conv),
        Module("b_proj", "bt_proj", ("weight", "bias")),
        Module("f_proj", "g_proj", ("weight", "bias"), lambda options: options.forget_gate),
    )


@FOREIGN.register("stickbreaking_attn")
class FLAStickBreaking(FLAAttentionFamily):
    """FLA's stick-breaking attention, whose `use_cache` is False for want of one."""

    architecture = mixer = "stickbreaking"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 32}
    options = (_BIAS, _QK_NORM, Option("attend_current", "attend_current", False))


@FOREIGN.register("nsa")
class FLANativeSparse(FLAAttentionFamily):
    """FLA's NSA, right for `block_counts` that are powers of two alone."""

    architecture = mixer = "nsa"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 64, "num_kv_heads": 4}
    constants: ClassVar[dict[str, Any]] = {"qk_norm": False}
    options = (
        _BIAS,
        _THETA,
        Option("head_dim", "head_dim", 32),
        Option("block_size", "block_size", 64),
        Option("block_counts", "block_counts", 16, tuple(2**power for power in range(2, 16))),
        Option("window_size", "window", 512),
    )
    modules = (Module("g_proj", "g_proj"),)


@FOREIGN.register("moba")
class FLABlockMixture(FLAAttentionFamily):
    """FLA's MoBA: `window_size` has no effect, and one block is attention to all there. Decoding is ours: FLA's
    attends to every cached key."""

    architecture = mixer = "moba"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 32}
    dead = ("elementwise_affine", "window_size", "use_flash_moba")
    constants: ClassVar[dict[str, Any]] = {"qk_norm_eps": 1e-5, "output_norm_eps": 1e-6}
    options = (
        _BIAS,
        _QK_NORM,
        _THETA,
        Option("moba_chunk_size", "block_size", 256),
        Option("moba_topk", "topk", 4, tuple(range(2, 257))),
        Option("use_output_gate", "use_output_gate", False),
    )
    modules = (
        Module("o_norm", "o_norm"),
        Module("g_proj.0", "g_proj.0", present=lambda options: options.use_output_gate),
        Module("g_proj.1", "g_proj.1", present=lambda options: options.use_output_gate),
    )
