"""Families of checkpoints whose parts are here in part, and what of them is not: one line in place of "not known"."""

from __future__ import annotations

from ..core.errors import ConfigError

_INDEXER = "attention to tokens that a learned indexer selects, and n-grams injected into every stream"
UNSUPPORTED = {
    "deepseek_v4": "attention to compressed keys that an indexer selects, projections of groups of heads, and experts "
    "chosen by a table of token ids",
    "gemma3n_text": "per-layer embeddings, AltUp and Laurel blocks",
    "qwen4_exp": _INDEXER,
    "qwen4_exp_text": _INDEXER,
}
"""model_type -> what no part says."""
TEXT_MODELS = {"qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text"}
"""model_type of a model of images and text -> that of its text model, which has a config of its own inside."""


def check_supported(model_type: str) -> None:
    """Raise a ConfigError that says why a family cannot be converted, where that is known."""
    if model_type in UNSUPPORTED:
        raise ConfigError(f"model_type: {model_type!r} cannot be converted: it has {UNSUPPORTED[model_type]}")
    if model_type in TEXT_MODELS:
        raise ConfigError(
            f"model_type: {model_type!r} is a model of images and text; convert its text model, the config under "
            f"`text_config` with model_type {TEXT_MODELS[model_type]!r}"
        )
