"""transformers' `FalconH1ForCausalLM`: attention and Mamba-2 side by side in every layer, and a factor at each place
where muP puts one.

The factor of the keys is here one of the scores, `scale = key_multiplier / sqrt(head_dim)`, and that of the logits
`logits_scaling = 1 / lm_head_multiplier`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar

from ..core.errors import ConfigError
from ..core.registry import MIXERS
from ..layers.mixers.attention import Attention
from ..layers.mixers.mamba2 import StateSpaceDual
from ..models.configuration import ArchConfig
from .base import FOREIGN
from .directions import need_layer, options_to_ours, options_to_theirs
from .mamba2 import MIXER_TENSORS, step_limits, their_limits
from .reader import POSITIVE, ConfigReader
from .table import (
    Entry,
    Layer,
    Modules,
    Option,
    Tensors,
    Unused,
    holds,
    only,
    under,
)
from .transformers_dense import BIAS, BLOCKS, HEADS, LlamaBlocks, attention_bias
from .transformers_hybrids import SCAN_SIZES
from .transformers_variants import without

_ATTENTION, _MAMBA = 0, 1


def branch(layer: Layer, index: int) -> Layer:
    """One mixer of a layer that has several side by side, as the layer's own."""
    mixer_class, mixer = layer.mixer_class.members(layer.mixer)[index]
    return replace(layer, mixer_class=mixer_class, mixer=mixer)


def of_branch(index: int, tables: Iterable[Tensors]) -> tuple[Tensors, ...]:
    """The same tensors, whose conditions ask one branch of the layer."""

    def asked(condition: Any) -> Callable[[Layer], bool]:
        return lambda layer: holds(condition, branch(layer, index))

    conditional = (replace(table, when=asked(table.when)) for table in tables)
    return tuple(
        replace(table, bias=asked(table.bias)) if isinstance(table, Modules) else table for table in conditional
    )


def inverse(forward: Callable[[float], float], value: float, near: float) -> float:
    """The shortest number close to `near` that `forward` takes to `value` exactly; `near` where there is none."""
    rounded = [float(f"{near:.{digits}g}") for digits in range(1, 18)]
    around = [near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf)]
    return next((found for found in (*rounded, *around) if found and forward(found) == value), near)


def _key_multiplier(layer: Layer) -> float:
    attention = branch(layer, _ATTENTION)
    scale, unit = attention.effective["scale"], attention.effective["heads"][2] ** -0.5
    return inverse(lambda factor: factor * unit, scale, scale / unit)


def _head_multiplier(layer: Layer) -> float:
    scaling = layer.config.logits_scaling
    return inverse(lambda factor: 1 / factor, scaling, 1 / scaling)


def _inner(reader: ConfigReader) -> int:
    """The channels of their Mamba-2."""
    given = reader.take("mamba_d_ssm", 1024)
    return int(reader.take("mamba_expand", 2) * reader.need("hidden_size")) if given is None else given


def _expand(_: Any, reader: ConfigReader) -> float:
    inner, width = _inner(reader), reader.need("hidden_size")
    return inverse(lambda expand: int(expand * width), inner, inner / width)


def _their_inner(layer: Layer) -> int:
    return int(branch(layer, _MAMBA).mixer.expand * layer.config.hidden_size)


def _factors(name: str, count: int) -> Option:
    """A list of factors, 1 where it is left out."""

    def read(given: Any, _: ConfigReader) -> list[float]:
        known = isinstance(given, (list, tuple)) and len(given) == count and all(map(POSITIVE[0], given))
        if not known:
            raise ConfigError(f"config.{name}: {given!r} is not allowed; use {count} numbers > 0")
        return [float(factor) for factor in given]

    return Option(name, default=[1.0] * count, null=True, read=read)


def _factor(name: str) -> Option:
    return Option(name, default=1.0, kind=POSITIVE)


_FACTORS: tuple[Option, ...] = (
    *map(_factor, ("attention_in_multiplier", "ssm_in_multiplier", "attention_out_multiplier", "ssm_out_multiplier")),
    _factor("key_multiplier"),
    _factors("mlp_multipliers", 2),
    _factors("ssm_multipliers", 5),
)
_SCAN: tuple[Entry, ...] = (
    Option(
        "mamba_d_head",
        "head_dim",
        "auto",
        read=lambda given, reader: _inner(reader) // reader.take("mamba_n_heads", 128) if given == "auto" else given,
    ),
    Option("mamba_n_heads", None, 128, write=lambda layer: _their_inner(layer) // branch(layer, _MAMBA).mixer.head_dim),
    Option("mamba_d_ssm", "expand", 1024, read=_expand, write=_their_inner),
    Unused("mamba_expand"),
    *SCAN_SIZES,
    Option("mamba_rms_norm", "use_norm", False),
    Option("mamba_norm_before_gate", "norm_before_gate", True),
    step_limits(write=lambda layer: their_limits(branch(layer, _MAMBA))),
)


@FOREIGN.register("falcon_h1")
class FalconH1(LlamaBlocks):
    """See above."""

    architecture = "parallel"
    defaults: ClassVar[dict[str, Any]] = {
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
    }
    model_table = (
        *without(BLOCKS, "hidden_act"),
        only("hidden_act", "silu", written=True),  # the gate and the convolution of their Mamba-2 have it too
        *HEADS,
        BIAS,
        Option("mlp_bias", default=False),
        Option("embedding_multiplier", default=1.0, kind=POSITIVE),
        Option(
            "lm_head_multiplier",
            "logits_scaling",
            1.0,
            kind=POSITIVE,
            read=lambda factor, _: 1 / factor,
            write=_head_multiplier,
        ),
        only("attn_layer_indices", None),
        only("mamba_use_mlp", True),
        Unused("mamba_chunk_size num_logits_to_keep mlp_expansion_factor"),
    )
    model_tensors = (
        Modules("model.embed_tokens model.norm lm_head", "model.embed_tokens model.final_layernorm lm_head"),
    )
    layer_tensors = (
        Modules("mixer_norm ffn_norm", "input_layernorm pre_ff_layernorm"),
        *of_branch(
            _ATTENTION,
            under("mixer.branches.0", "self_attn", Modules("q_proj k_proj v_proj o_proj", bias=attention_bias)),
        ),
        *of_branch(_MAMBA, under("mixer.branches.1", "mamba", *MIXER_TENSORS)),
        *under("ffn", "feed_forward", Modules("gate_proj up_proj down_proj", bias=lambda layer: layer.config.mlp_bias)),
    )

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        values = {"architecture": self.architecture, **options_to_ours(self.model_table, reader)}
        factors = options_to_ours(_FACTORS, reader)
        scan = options_to_ours(_SCAN, reader)
        # Of attention and Mamba-2 in the order of the branches.
        before, after = (
            [factors[f"{part}_{place}_multiplier"] for part in ("attention", "ssm")] for place in ("in", "out")
        )
        gate, down = factors["mlp_multipliers"]
        reader.only("projectors_bias", [scan["proj_bias"]], False)
        attention: dict[str, Any] = {"type": "attention"}
        if factors["key_multiplier"] != 1:
            attention["scale"] = factors["key_multiplier"] * values["head_dim"] ** -0.5
        mamba = {"type": "mamba2", **scan, "projection_multipliers": factors["ssm_multipliers"]}
        mixer = {"type": "parallel", "branches": [attention, mamba], "input_scales": before, "output_scales": after}
        return {**values, "mixer": mixer, "ffn": {"type": "glu", "gate_multiplier": gate, "output_multiplier": down}}

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        layer = need_layer(config, MIXERS, "parallel", "falcon_h1")
        found = [mixer for mixer, _ in layer.mixer_class.members(layer.mixer)]
        if found != [Attention, StateSpaceDual]:
            names = ", ".join(mixer.__name__ for mixer in found)
            raise ConfigError(f"branches: {names} cannot be expressed in a falcon_h1 checkpoint; use attention, mamba2")
        values, mamba, ffn = layer.effective, branch(layer, _MAMBA).mixer, layer.ffn_class.effective(config, layer.ffn)
        theirs = options_to_theirs(self.model_table, layer, config)
        theirs |= {**options_to_theirs(_SCAN, layer, mamba), "projectors_bias": mamba.proj_bias}
        for place, scales in (("in", values["input_scales"]), ("out", values["output_scales"])):
            theirs |= {f"attention_{place}_multiplier": scales[_ATTENTION], f"ssm_{place}_multiplier": scales[_MAMBA]}
        return {
            **theirs,
            "key_multiplier": _key_multiplier(layer),
            "mlp_multipliers": [ffn.get(name, 1.0) for name in ("gate_multiplier", "output_multiplier")],
            "ssm_multipliers": values["branches"][_MAMBA]["projection_multipliers"],
        }
