"""Mamba checkpoints: transformers' `MambaForCausalLM` and FLA's, which share keys and differ in some option names."""

from __future__ import annotations

from typing import Any

from ..models.configuration import ArchConfig
from .base import FOREIGN, Converter, Rule, parts, same
from .reader import ConfigReader
from .transformers_dense import take_tokens, their_tokens

# Our options that shape the initial step sizes, by transformers' name and FLA's, with the defaults of both.
_INIT = {
    "dt_scale": ("time_step_scale", "dt_scale", 1.0),
    "dt_min": ("time_step_min", "dt_min", 1e-3),
    "dt_max": ("time_step_max", "dt_max", 1e-1),
    "dt_init_floor": ("time_step_floor", "dt_init_floor", 1e-4),
}
_NATIVE = ("layer_norm_epsilon", "use_mambapy", *(names[0] for names in _INIT.values()))


@FOREIGN.register("mamba")
class Mamba(Converter):
    """Mamba-1; a config is read as transformers' where it has transformers' names, and written with both."""

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        native = any(name in reader.config for name in _NATIVE)
        # Of another one the gate gets none in transformers, and in FLA on a GPU, but does in FLA on a CPU.
        reader.only("hidden_act", ["silu", "swish"], "silu")
        reader.only("use_falcon_mambapy", [False], False)
        reader.dead(
            "rescale_prenorm_residual",
            "use_associative_scan",
            "residual_in_fp32",
            "use_mambapy",
            "intermediate_size",
            "time_step_init_scheme",
        )
        reader.dead("fuse_norm", "fuse_cross_entropy", "fuse_linear_cross_entropy", "dt_init_scheme", "criterion")
        hidden = reader.need("hidden_size")
        rank = reader.take("time_step_rank", reader.take("dt_rank", "auto"))
        return take_tokens(
            reader,
            {
                "architecture": "mamba",
                "vocab_size": reader.need("vocab_size"),
                "hidden_size": hidden,
                "max_logit_penalty": reader.max_logit_penalty(),
                "num_hidden_layers": reader.need("num_hidden_layers"),
                "norm_eps": reader.take("layer_norm_epsilon", reader.take("norm_eps", 1e-5)),
                "tie_word_embeddings": reader.take("tie_word_embeddings", native),
                "mixer": {
                    "type": "mamba",
                    "state_size": reader.take("state_size", 16),
                    "expand": reader.take("expand", 2),
                    "conv_size": reader.take("conv_kernel", 4),
                    "dt_rank": -(-hidden // 16) if rank in ("auto", None) else rank,
                    "conv_bias": reader.take("use_conv_bias", True),
                    "proj_bias": reader.take("use_bias", False),
                    **{ours: reader.take(hf, reader.take(fla, value)) for ours, (hf, fla, value) in _INIT.items()},
                },
            },
        )

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        options = config.mixer_specs[0][1]

        def get(name: str) -> Any:
            return getattr(options, name, None)  # of another mixer, which `to_foreign` then refuses

        rank = get("dt_rank") or -(-config.hidden_size // 16)
        return {
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_hidden_layers,
            "layer_norm_epsilon": config.norm_eps,
            "norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tie_word_embeddings,
            "initializer_range": config.initializer_range,
            "hidden_act": "silu",
            **({"use_l2warp": True} if config.max_logit_penalty else {}),  # FLA's alone
            "state_size": get("state_size"),
            "expand": get("expand"),
            "intermediate_size": int((get("expand") or 2) * config.hidden_size),
            "conv_kernel": get("conv_size"),
            "time_step_rank": rank,
            "dt_rank": rank,
            "use_conv_bias": get("conv_bias"),
            "use_bias": get("proj_bias"),
            **{name: get(ours) for ours, names in _INIT.items() for name in names[:2]},
            **their_tokens(config),
        }

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
            rules += [same(f"{ours}.{name}", f"{theirs}.{name}") for name in ("A_log", "D")]
            rules += parts(f"{ours}.conv", f"{theirs}.conv1d", both if options.conv_bias else ("weight",))
            rules += parts(f"{ours}.x_proj", f"{theirs}.x_proj") + parts(f"{ours}.dt_proj", f"{theirs}.dt_proj", both)
            for name in ("in_proj", "out_proj"):
                rules += parts(f"{ours}.{name}", f"{theirs}.{name}", both if options.proj_bias else ("weight",))
        return rules
