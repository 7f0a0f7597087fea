"""transformers' `KimiLinearForCausalLM`: Kimi Delta Attention and latent attention without positions, dense first
layers, then experts as DeepSeek-V3's."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ..core.errors import ConfigError
from ..layers.mixers.kda import KimiDeltaAttention
from ..layers.mixers.mla import LatentAttention
from ..models.configuration import ArchConfig
from .base import FOREIGN
from .directions import layers_of, options_to_ours, options_to_theirs
from .moe import DEEPSEEK_FFN, EXPERTS, LATENT, ROUTER_LOGITS, MoEConverter, has_experts
from .reader import WHOLE, ConfigReader
from .rules import Rule, fused
from .table import Always, Entry, Layer, Modules, Option, Tensors, Unused, only, under, when
from .transformers_dense import BLOCKS, NORMS
from .transformers_variants import without

_MIXERS = {"linear_attention": KimiDeltaAttention, "full_attention": LatentAttention}
_FFNS = ("dense", "sparse")

_MODEL: tuple[Entry, ...] = (
    *without(BLOCKS, "rope_parameters", "hidden_act", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
    Unused("tie_word_embeddings"),  # their model has a head of its own, whatever it says
    Always("tie_word_embeddings", False),
    Option("hidden_act", default="silu", allowed={"silu": "silu"}),  # the convolutions have it too
    Option("rms_norm_eps", "norm_eps", 1e-5),
    Option(("model_max_length", "max_position_embeddings"), "max_position_embeddings", 1048576),
    Option(
        "num_key_value_heads",
        default=32,
        allowed=lambda reader: (reader.need("num_attention_heads"),),
        write=lambda layer: layer.config.num_attention_heads,
    ),
    only("attention_bias", False),
    ROUTER_LOGITS,
    Unused("qk_head_dim head_dim pretraining_tp mla_use_nope num_nextn_predict_layers use_grouped_topk"),
)
_LATENT: tuple[Entry, ...] = (
    Option("q_lora_rank"),
    Option("kv_lora_rank", default=512),
    Option("qk_nope_head_dim", default=128),
    Option("qk_rope_head_dim", default=64),
    Option("v_head_dim", default=128),
    Always("position", "none"),
    Always("latent_norm_eps", 1e-6),  # whatever the config says
)
_DELTA: tuple[Entry, ...] = (
    Option("linear_head_dim", "head_dim", 128, kind=WHOLE),
    Option("linear_num_heads", "num_heads", 32, kind=WHOLE),
    Option("linear_conv_kernel_dim", "conv_size", 4, kind=WHOLE),
    Always("gate_bias", False),
)
_EXPERTS: tuple[Entry, ...] = (
    Option(("num_experts", "num_local_experts"), "num_experts", 256),
    Option(("num_experts_per_token", "num_experts_per_tok"), "num_experts_per_tok", 8),
    Option("moe_intermediate_size", "intermediate_size", 1024, write=lambda layer: layer.ffn_width),
    Option(("num_shared_experts", "n_shared_experts"), "num_shared_experts", 1),
    Option(("moe_renormalize", "norm_topk_prob"), "normalize_weights", True),
    Option("routed_scaling_factor", default=2.446),
    Option(("num_expert_group", "n_group"), "num_groups", 1),
    Option("topk_group", "groups_per_token", 1),
    Always("router", "sigmoid"),
    Always("score_bias", True),
    Always("aux_loss_coef", 0.0),
)


def _is_delta(layer: Layer) -> bool:
    return layer.mixer_class is KimiDeltaAttention


def _is_latent(layer: Layer) -> bool:
    return layer.mixer_class is LatentAttention


def _convolutions(layer: Layer, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Rule:
    sizes = KimiDeltaAttention.head_sizes(layer.config, layer.mixer)
    return fused(ours, theirs[0], [sizes.key_dim, sizes.key_dim, sizes.value_dim])


def _rates(layer: Layer, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Rule:
    """A number for each head, [1, 1, H, 1] there."""

    def to_ours(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0].flatten()]

    def to_theirs(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0].view(1, 1, -1, 1)]

    return Rule(ours, theirs, to_ours, to_theirs)


@FOREIGN.register("kimi_linear")
class KimiLinear(MoEConverter):
    """See above."""

    layer_tensors = (
        NORMS,
        *when(_is_latent, LATENT),
        *when(
            _is_delta,
            under(
                "mixer",
                "self_attn",
                Modules("q_proj k_proj v_proj b_proj o_norm o_proj"),
                Tensors("q_conv.weight k_conv.weight v_conv.weight", "conv1d.weight", layout=_convolutions),
                Tensors("dt_bias", "forget_gate.dt_bias"),
                Tensors("A_log", "forget_gate.A_log", layout=_rates),
                Modules("f_proj.0 f_proj.1", "forget_gate.f_a_proj forget_gate.f_b_proj"),
                Modules("g_proj.0 g_proj.1", "g_a_proj g_b_proj"),
            ),
        ),
        *EXPERTS,
        *DEEPSEEK_FFN,
    )
    defaults: ClassVar[dict[str, Any]] = {}

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        values = {"architecture": self.architecture, **options_to_ours(_MODEL, reader)}
        count = values["num_hidden_layers"]
        default = ["full_attention" if index and index % 4 == 0 else "linear_attention" for index in range(count)]
        mixers = {
            "linear_attention": {"type": "kda", **options_to_ours(_DELTA, reader)},
            "full_attention": {"type": "mla", **options_to_ours(_LATENT, reader)},
        }
        kinds = self._kinds(reader, "layer_types", default, _MIXERS)
        dense = reader.take("first_k_dense_replace", 1)
        default = ["dense" if index < dense else "sparse" for index in range(count)]
        ffns = {"dense": "glu", "sparse": {"type": "moe", **options_to_ours(_EXPERTS, reader)}}
        feeds = self._kinds(reader, "mlp_layer_types", default, _FFNS)
        if "sparse" not in feeds:
            values["architecture"] = "mixed"
            if values.pop("output_router_logits"):
                raise ConfigError("config.output_router_logits: True is not supported without experts; use False")
        return {**values, "mixer": [mixers[kind] for kind in kinds], "ffn": [ffns[kind] for kind in feeds]}

    def _kinds(self, reader: ConfigReader, name: str, default: list[str], allowed: Any) -> list[str]:
        kinds = reader.given(name, default)
        if not isinstance(kinds, list) or len(kinds) != len(default) or not set(kinds) <= set(allowed):
            raise ConfigError(
                f"config.{name}: {kinds!r} is not allowed; use {' or '.join(allowed)} for each of {len(default)} layers"
            )
        return kinds

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        layers = layers_of(config)
        theirs = options_to_theirs(_MODEL, layers[0], config)
        dense = (layer.ffn_width for layer in layers if not has_experts(layer))
        theirs["intermediate_size"] = next(dense, config.intermediate_size or 4 * config.hidden_size)
        for table, found, part in (
            (_DELTA, _is_delta, "mixer"),
            (_LATENT, _is_latent, "mixer"),
            (_EXPERTS, has_experts, "ffn"),
        ):
            layer = next((each for each in layers if found(each)), None)
            if layer is not None:
                theirs |= options_to_theirs(table, layer, getattr(layer, part))
        names = {mixer: name for name, mixer in _MIXERS.items()}
        theirs["layer_types"] = [names.get(layer.mixer_class, "full_attention") for layer in layers]
        return {**theirs, "mlp_layer_types": [_FFNS[has_experts(layer)] for layer in layers]}
