"""Reading a foreign config: key by key, each value of the kind that its name calls for, and none left unread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from transformers import PreTrainedConfig

from ..core.errors import ConfigError, nearest

# What every transformers config carries and no model's numbers depend on.
_GENERIC = {
    *PreTrainedConfig().to_dict(),
    *("_name_or_path", "architectures", "auto_map", "model_type", "torch_dtype", "transformers_version", "use_cache"),
    *("initializer_range", "num_labels", "task_specific_params", "pretraining_tp", "attn_implementation"),
    *("_attn_implementation", "output_attentions", "name_or_path", "quantization_config", "is_decoder"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
}
L2WARP_PENALTY = 1e-4


Kind = tuple[Callable[[Any], bool], str]
"""What a value may be: a test, and the same in words."""


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _bounds(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2


WHOLE: Kind = (_whole(1), "an integer >= 1")
COUNT: Kind = (_whole(0), "an integer >= 0")
POSITIVE: Kind = (_positive, "a number > 0")
# What values may be, by the names of all families. Null is each family's own matter.
_KINDS: dict[tuple[str, ...], Kind] = {
    (
        *("hidden_size", "n_embd", "num_hidden_layers", "n_layer", "vocab_size", "padded_vocab_size"),
        *("num_heads", "num_attention_heads", "n_head", "num_kv_heads", "num_key_value_heads", "n_query_groups"),
        *("head_dim", "head_size", "num_v_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
        *("intermediate_size", "n_inner", "moe_intermediate_size", "max_position_embeddings", "n_positions"),
        *("block_size", "conv_size", "conv_kernel", "state_size", "n_groups", "num_slots"),
        *("q_lora_rank", "kv_lora_rank", "proj_low_rank_dim", "gate_low_rank_dim", "decay_low_rank_dim"),
        *("a_low_rank_dim", "v_low_rank_dim", "num_local_experts", "n_routed_experts", "num_experts_per_tok"),
        *("n_group", "topk_group", "num_householder", "attnres_block_size"),
    ): WHOLE,
    (
        *("window_size", "sliding_window", "sliding_window_size", "max_window_layers"),
        *("first_k_dense_replace", "n_shared_experts"),
    ): COUNT,
    ("time_step_rank", "dt_rank"): (lambda value: value == "auto" or _whole(1)(value), "'auto' or an integer >= 1"),
    (
        *("expand", "expand_k", "expand_v", "exapnd_k", "exapnd_v", "hidden_ratio", "rope_theta", "rope_base"),
        "rotary_percentage",
        *("expand_ratio", "gate_logit_normalizer", "conv_init"),
        *("time_step_scale", "time_step_min", "time_step_max", "time_step_floor"),
        *("dt_scale", "dt_min", "dt_max", "dt_init_floor", "squash_x", "squash_eps"),
    ): POSITIVE,
    ("A_init_range", "time_step_limit", "dt_limit"): (_bounds, "a pair (low, high)"),
    ("rope_parameters", "rope_scaling"): (lambda value: isinstance(value, dict), "a dict"),
    ("attn",): (lambda value: isinstance(value, (dict, list)), "a dict or a list of dicts"),
}


class ConfigReader:
    """Reads a foreign config key by key and knows which keys nobody has read."""

    def __init__(self, config: dict[str, Any], name: str = "config"):
        self.config, self.name, self.seen = config, name, set(_GENERIC)
        self.model_type = config.get("model_type")

    def take(self, key: str, default: Any = None, kind: Kind | None = None) -> Any:
        """The value, or `default` where the key is absent; a ConfigError where it is not of the kind, which is by
        default what its name calls for."""
        self.seen.add(key)
        value = self.config.get(key, default)
        kind = kind or next((kind for names, kind in _KINDS.items() if key in names), None)
        if kind is not None and value is not None and not kind[0](value):
            raise ConfigError(f"{self.name}.{key}: {value!r} is not allowed; use {kind[1]}")
        return value

    def given(self, key: str, default: Any) -> Any:
        """The value, or `default` where the key is absent or null."""
        value = self.take(key, default)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """The value; a ConfigError where the key is absent or null."""
        if self.config.get(key) is None:
            raise ConfigError(f"{self.name}: no {key!r}, which a {self.model_type} checkpoint has")
        return self.take(key)

    def max_logit_penalty(self) -> float:
        """FLA's `use_l2warp` as the strength of that penalty, which is fixed there."""
        return L2WARP_PENALTY if self.take("use_l2warp", False) else 0.0

    def only(self, key: str, allowed: Iterable[Any], default: Any) -> Any:
        """The value, which must be one of `allowed`: others have an effect that no component here has."""
        value, options = self.take(key, default), allowed if isinstance(allowed, range) else list(allowed)
        if value not in options:
            numbers = isinstance(options, range)
            listed = f"{options[0]} to {options[-1]}" if numbers else ", ".join(map(repr, options))
            raise ConfigError(f"{self.name}.{key}: {value!r} is not supported by {self.model_type}; allowed: {listed}")
        return value

    def dead(self, *keys: str) -> None:
        """Mark keys that have no effect on the numbers of the source either."""
        self.seen.update(keys)

    def finish(self) -> None:
        """Raise a ConfigError for keys that were never read, since an option must not be ignored silently."""
        unread = sorted(set(self.config) - self.seen)
        if unread:
            near = nearest(unread[0], self.seen - _GENERIC)
            hint = f"; nearest known: {near!r}" if near else ""
            raise ConfigError(
                f"{self.name}: {unread[0]!r} is not an option of {self.model_type} that can be converted{hint}"
            )
