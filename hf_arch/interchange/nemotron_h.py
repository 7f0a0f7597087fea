"""transformers' `NemotronHForCausalLM`: one sublayer a layer, of Mamba-2, attention without positions, a feed-forward
or experts; here a layer is one of the first two and the feed-forward behind it, if one stands there."""

from __future__ import annotations

from typing import Any, ClassVar

from ..core.errors import ConfigError
from ..layers.ffns.ffn import NoFeedForward
from ..models.configuration import ArchConfig
from .base import FOREIGN, Converter
from .directions import layers_of, options_to_ours, options_to_theirs, tensor_rules
from .mamba2 import MIXER_TENSORS
from .moe import ROUTER_LOGITS, has_experts
from .names import ACTIVATIONS, COMMON
from .reader import WHOLE, ConfigReader
from .rules import Rule
from .table import Always, Entry, Layer, Modules, Option, Tensors, Unused, only, under, when
from .transformers_dense import HEADS
from .transformers_hybrids import attends, is_scan, without_attention

_MIXERS = {"linear_attention": "mamba2", "full_attention": "attention"}
_FFNS = {"mlp": "mlp", "moe": "moe"}
_LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
_OLDER = {"mamba": "linear_attention", "attention": "full_attention"}


def _inner(layer: Layer) -> int:
    return int(layer.mixer.expand * layer.config.hidden_size)


def _kinds(reader: ConfigReader) -> list[str]:
    """Their layers."""
    pattern = reader.take("hybrid_override_pattern")
    kinds = reader.take("layer_types", reader.take("layers_block_type"))
    if kinds is None and pattern is not None:
        kinds = [_LETTERS.get(letter, letter) for letter in pattern]
    kinds = [_OLDER.get(kind, kind) for kind in kinds] if isinstance(kinds, list) else kinds
    if not isinstance(kinds, list) or not kinds or not set(kinds) <= {*_MIXERS, *_FFNS}:
        raise ConfigError(f"config.layer_types: {kinds!r} is not allowed; use a list of {', '.join(_LETTERS.values())}")
    for index, kind in enumerate(kinds):
        if kind in _FFNS and (index == 0 or kinds[index - 1] in _FFNS):
            raise ConfigError(
                f"config.layer_types: {kind!r} of layer {index} needs one of {' or '.join(_MIXERS)} before it"
            )
    return kinds


_MODEL: tuple[Entry, ...] = (
    *(Option(name, required=True) for name in ("vocab_size", "hidden_size", "num_attention_heads")),
    *HEADS,
    Option("layer_norm_epsilon", "norm_eps", 1e-5),
    Option("mlp_hidden_act", "hidden_act", "relu2", allowed=ACTIVATIONS),
    Option("intermediate_size", default=21504, write=lambda layer: _dense_width(layer.config)),
    Option("mlp_bias", default=False),
    Option("attention_dropout", default=0.0),
    Option("max_position_embeddings", default=4096),
    Always("tie_word_embeddings", False),
    only("mamba_hidden_act", "silu", "swish"),
    only("moe_latent_size", None),
    only("num_nextn_predict_layers", 0),
    Always("position", "none"),
    Unused("tie_word_embeddings"),  # their model has a head of its own, whatever it says
    Unused("attention_bias sliding_window num_logits_to_keep use_mamba_kernels chunk_size mamba_ssm_cache_dtype"),
    Unused(
        "mamba_proj_bias moe_shared_expert_overlap mtp_layers_block_type hidden_dropout rescale_prenorm_residual expand"
    ),
    Unused("mtp_hybrid_override_pattern num_hidden_layers time_step_limit residual_in_fp32"),
    *COMMON,
)
_SCAN: tuple[Entry, ...] = (
    Option("mamba_head_dim", "head_dim", 64, kind=WHOLE),
    Option(
        "mamba_num_heads",
        "expand",
        128,
        kind=WHOLE,
        read=lambda heads, reader: heads * reader.take("mamba_head_dim", 64) / reader.need("hidden_size"),
        write=lambda layer: _inner(layer) // layer.mixer.head_dim,
    ),
    Option("ssm_state_size", "state_size", 128, kind=WHOLE),
    Option("n_groups", default=8),
    Option("conv_kernel", "conv_size", 4),
    Option("use_conv_bias", "conv_bias", True),
    Option("use_bias", "proj_bias", False),
    Option("time_step_max", "dt_max", 0.1),
    Option("time_step_floor", "dt_init_floor", 1e-4),
    # Their steps are at least as large as those that they begin with.
    Option("time_step_min", "dt_limit_min", 1e-3),
)
_EXPERTS: tuple[Entry, ...] = (
    Option("n_routed_experts", "num_experts", 8),
    Option("num_experts_per_tok", default=2),
    Option("moe_intermediate_size", "intermediate_size", 7688, write=lambda layer: layer.ffn_width),
    Option(
        "moe_shared_expert_intermediate_size",
        "shared_intermediate_size",
        7688,
        write=lambda layer: layer.ffn_class.shared_width(layer.config, layer.ffn),
    ),
    Unused("n_shared_experts"),
    Always("num_shared_experts", 1),
    Always("gated", False),
    Always("router", "sigmoid"),
    Always("score_bias", True),
    Always("aux_loss_coef", 0.0),
    Option("norm_topk_prob", "normalize_weights", True),
    Option("routed_scaling_factor", default=1.0),
    Option("n_group", "num_groups", 1),
    Option("topk_group", "groups_per_token", 1),
)


def _dense_width(config: ArchConfig) -> int | None:
    dense = (layer.ffn_width for layer in layers_of(config) if _is_dense(layer))
    return next(dense, config.intermediate_size or 4 * config.hidden_size)


def _is_dense(layer: Layer) -> bool:
    return layer.ffn_class is not NoFeedForward and not has_experts(layer)


@FOREIGN.register("nemotron_h")
class NemotronH(Converter):
    """See above."""

    defaults: ClassVar[dict[str, Any]] = {"num_key_value_heads": 8, "head_dim": 128}
    model_tensors = (Modules("model.embed_tokens model.norm lm_head", "model.embeddings model.norm_f lm_head"),)
    mixer_tensors = (
        Modules("mixer_norm", "norm"),
        *when(attends, under("mixer", "mixer", Modules("q_proj k_proj v_proj o_proj"))),
        *when(is_scan, under("mixer", "mixer", *MIXER_TENSORS)),
    )
    ffn_tensors = (
        Modules("ffn_norm", "norm"),
        *under(
            "ffn",
            "mixer",
            Modules("up_proj down_proj", when=_is_dense, bias=lambda layer: layer.config.mlp_bias),
            Tensors(
                "router.weight router.score_bias experts.up_proj experts.down_proj",
                "gate.weight gate.e_score_correction_bias experts.up_proj experts.down_proj",
                when=has_experts,
            ),
            Modules("shared_experts.up_proj shared_experts.down_proj", when=has_experts),
        ),
    )

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        kinds = _kinds(reader)
        values = options_to_ours(_MODEL, reader)
        scan = {"type": "mamba2", **options_to_ours(_SCAN, reader)}
        experts = {"type": "moe", **options_to_ours(_EXPERTS, reader)}
        logits = ROUTER_LOGITS.to_ours(reader)
        mixers: list[Any] = []
        ffns: list[Any] = []
        for kind in kinds:
            if kind in _MIXERS:
                mixers.append(scan if kind == "linear_attention" else "attention")
                ffns.append("none")
            else:
                ffns[-1] = experts if kind == "moe" else "mlp"
        if "moe" in kinds:
            values |= logits
            if values["mlp_bias"]:
                raise ConfigError("config.mlp_bias: True is not supported with experts; use False")
        if "attention" not in mixers:
            values = without_attention(values)
        architecture = "moe" if "moe" in kinds else "mixed"
        return {
            "architecture": architecture,
            **values,
            "num_hidden_layers": len(mixers),
            "mixer": mixers,
            "ffn": ffns,
        }

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        layers = layers_of(config)
        theirs = options_to_theirs(_MODEL, layers[0], config)
        for table, found, part in ((_SCAN, is_scan, "mixer"), (_EXPERTS, has_experts, "ffn")):
            layer = next((each for each in layers if found(each)), None)
            if layer is not None:
                theirs |= options_to_theirs(table, layer, getattr(layer, part))
        if any(has_experts(layer) for layer in layers):
            theirs |= ROUTER_LOGITS.to_theirs(layers[0], config)
        return {**theirs, "layers_block_type": _their_kinds(layers)}

    def rules(self, config: ArchConfig, foreign: dict[str, Any]) -> list[Rule]:
        layers = layers_of(config, foreign)
        rules, index = tensor_rules(self.model_tensors, layers[0]), 0
        for layer in layers:
            for table in (self.mixer_tensors, self.ffn_tensors)[: 1 + (layer.ffn_class is not NoFeedForward)]:
                names = f"model.layers.{layer.index}", f"model.layers.{index}"
                rules += tensor_rules(under(*names, *table), layer)
                index += 1
        return rules


def _their_kinds(layers: list[Layer]) -> list[str]:
    kinds = []
    for layer in layers:
        kinds.append("full_attention" if attends(layer) else "linear_attention")
        if layer.ffn_class is not NoFeedForward:
            kinds.append("moe" if has_experts(layer) else "mlp")
    return kinds
