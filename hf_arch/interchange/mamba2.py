"""Mamba-2 checkpoints: transformers' `Mamba2ForCausalLM` and FLA's, which share keys and differ in option names."""

from __future__ import annotations

import math
from typing import Any

from ..models.configuration import ArchConfig
from .base import FOREIGN, Converter, Rule, parts, same
from .reader import ConfigReader
from .transformers_dense import take_tokens, their_tokens

# Our options by transformers' name and FLA's, where these differ.
_INIT = {
    "dt_min": ("time_step_min", "dt_min", 1e-3),
    "dt_max": ("time_step_max", "dt_max", 1e-1),
    "dt_init_floor": ("time_step_floor", "dt_init_floor", 1e-4),
}
# FLA's options that transformers' model does not have: our name and the one value that it knows.
_OF_FLA = {
    "rmsnorm": ("use_norm", True),
    "norm_before_gate": ("norm_before_gate", False),
    "D_has_hdim": ("D_has_hdim", False),
}


@FOREIGN.register("mamba2")
class Mamba2(Converter):
    """Mamba-2; a config is read as transformers' where it has transformers' names, and written with both, or with FLA's
    alone where the model has what only FLA's has (transformers ignores it)."""

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        native = "layer_norm_epsilon" in reader.config or "time_step_rank" in reader.config
        reader.only("hidden_act", ["silu", "swish"], "silu")
        reader.dead("time_step_rank", "chunk_size", "residual_in_fp32", "criterion")
        reader.dead("fuse_norm", "fuse_cross_entropy", "fuse_linear_cross_entropy")
        if native:
            reader.dead("rms_norm", *_OF_FLA)
        hidden, expand, head_dim = reader.need("hidden_size"), reader.given("expand", 2), reader.given("head_dim", 64)
        reader.only("num_heads", [int(expand * hidden) // head_dim], int(expand * hidden) // head_dim)
        low, high = (
            _number(bound) for bound in reader.given("time_step_limit", reader.given("dt_limit", (0.0, math.inf)))
        )
        slowest, fastest = reader.given("A_init_range", (1, 16))
        mixer = {
            "type": "mamba2",
            "head_dim": head_dim,
            "state_size": reader.take("state_size", 128),
            "expand": expand,
            "n_groups": reader.take("n_groups", 8 if native else 1),
            "conv_size": reader.take("conv_kernel", 4),
            "conv_bias": reader.take("use_conv_bias", True),
            "proj_bias": reader.take("use_bias", False),
            **{ours: value if native else reader.take(name, value) for name, (ours, value) in _OF_FLA.items()},
            "dt_limit_min": low,
            "dt_limit_max": None if math.isinf(high) else high,
            "A_min": slowest,
            "A_max": fastest,
            "conv_init": reader.take("conv_init"),
            "rescale_out_proj": reader.take("rescale_prenorm_residual", not native),
            **{ours: reader.take(first, reader.take(second, value)) for ours, (first, second, value) in _INIT.items()},
        }
        return take_tokens(
            reader,
            {
                "architecture": "mamba2",
                "vocab_size": reader.need("vocab_size"),
                "hidden_size": hidden,
                "max_logit_penalty": reader.max_logit_penalty(),
                "num_hidden_layers": reader.need("num_hidden_layers"),
                "norm_eps": reader.take("layer_norm_epsilon", reader.take("norm_eps", 1e-5)),
                "tie_word_embeddings": reader.take("tie_word_embeddings", False),
                "mixer": mixer,
            },
        )

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        options = config.mixer_specs[0][1]

        def get(name: str, default: Any = None) -> Any:
            return getattr(options, name, default)  # of another mixer, which `to_foreign` then refuses

        high = get("dt_limit_max")
        limit = [float(get("dt_limit_min", 0.0)), math.inf if high is None else float(high)]
        expand, head_dim = get("expand", 2), get("head_dim") or config.hidden_size
        of_fla = {name: get(ours, value) for name, (ours, value) in _OF_FLA.items()}
        theirs = {
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_hidden_layers,
            "layer_norm_epsilon": config.norm_eps,
            "norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tie_word_embeddings,
            "initializer_range": config.initializer_range,
            "hidden_act": "silu",
            **({"use_l2warp": True} if config.max_logit_penalty else {}),  # FLA's alone
            "head_dim": head_dim,
            "num_heads": int(expand * config.hidden_size) // head_dim,
            "state_size": get("state_size"),
            "expand": expand,
            "n_groups": get("n_groups", 1),
            "conv_kernel": get("conv_size"),
            "use_conv_bias": get("conv_bias"),
            "use_bias": get("proj_bias"),
            **of_fla,
            "time_step_limit": limit,
            "dt_limit": limit,
            "A_init_range": [get("A_min", 1), get("A_max", 16)],
            "conv_init": get("conv_init"),
            "rescale_prenorm_residual": get("rescale_out_proj", True),
            **their_tokens(config),
        }
        for ours, (first, second, value) in _INIT.items():
            theirs[first] = theirs[second] = get(ours, value)
        if any(of_fla[name] != value for name, (_, value) in _OF_FLA.items()):
            for name in ("layer_norm_epsilon", "time_step_limit", *(names[0] for names in _INIT.values())):
                del theirs[name]
        return theirs

    def rules(self, config: ArchConfig, foreign: dict[str, Any]) -> list[Rule]:
        options = config.mixer_specs[0][1]
        rules = [
            same("model.embed_tokens.weight", "backbone.embeddings.weight"),
            same("model.norm.weight", "backbone.norm_f.weight"),
            same("lm_head.weight", "lm_head.weight"),
        ]
        both = ("weight", "bias")
        for index in range(config.num_hidden_layers):
            ours, theirs = f"model.layers.{index}.mixer", f"backbone.layers.{index}.mixer"
            rules.append(same(f"model.layers.{index}.mixer_norm.weight", f"backbone.layers.{index}.norm.weight"))
            rules += [same(f"{ours}.{name}", f"{theirs}.{name}") for name in ("A_log", "D", "dt_bias")]
            rules += parts(f"{ours}.norm", f"{theirs}.norm") if options.use_norm else []
            rules += parts(f"{ours}.conv", f"{theirs}.conv1d", both if options.conv_bias else ("weight",))
            for name in ("in_proj", "out_proj"):
                rules += parts(f"{ours}.{name}", f"{theirs}.{name}", both if options.proj_bias else ("weight",))
        return rules


def _number(value: Any) -> float:
    """A bound of a config, whose infinities transformers writes as {"__float__": "Infinity"}."""
    return float(value["__float__"] if isinstance(value, dict) else value)
