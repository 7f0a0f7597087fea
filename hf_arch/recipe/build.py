"""From the `model` section of a recipe and the tokenizer of its data to the model's config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.data.tokenizer import vocabulary_size
from hf_arch.recipe.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def build_config(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None = None) -> PreTrainedConfig:
    """The config of the recipe's model. What the recipe leaves open is taken from the data: `vocab_size` and the
    special tokens from the tokenizer, `max_position_embeddings` from the length of the rows; a probe's setting that is
    named after its source gives what that source builds its models with.

    Without a tokenizer (before the data is prepared) the vocabulary counts as `data.vocab_size`: enough to find
    mistakes early. Raises `ConfigError` for options that the architecture does not have, and for a vocabulary smaller
    than the tokenizer's.
    """
    source = None if recipe.probe is None else recipe.probe.settings.source
    values: dict[str, Any] = {**({} if source is None else source.model), **recipe.model}
    if recipe.probe is not None:
        size = recipe.probe.data("train", 0, examples=1).vocab_size
    else:
        size = vocabulary_size(tokenizer) if tokenizer is not None else recipe.data.vocab_size
    values.setdefault("vocab_size", size)
    values.setdefault("max_position_embeddings", recipe.longest_row)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        values.setdefault(name, getattr(tokenizer, name, None))
    sized_by = "probe" if recipe.probe is not None else "tokenizer" if tokenizer is not None else None
    if sized_by and isinstance(values["vocab_size"], int) and values["vocab_size"] < size:
        raise ConfigError(
            f"model.vocab_size: {values['vocab_size']} is too small for the {sized_by}; allowed: at least {size}; "
            f"nearest: {size}"
        )
    try:
        config = hf_arch.config_from_dict(values)
        if source is not None and source.attention and _is_attention(config):
            config = hf_arch.config_from_dict({**source.attention, **values})
        return config
    except ConfigError as error:
        if (error.field or "").partition(".")[0] == "model":
            raise
        raise error.within("model", ": ") from error  # of a plugin


def _is_attention(config: PreTrainedConfig) -> bool:
    """Whether every layer takes its positions and its dropout from the config, as softmax attention does."""
    taken = {"position", "attention_dropout"}
    return all(taken.issubset(mixer.config_features) for mixer, _ in getattr(config, "mixer_specs", [(None, None)]))


def changed_initialisation(recipe: Recipe, config: PreTrainedConfig) -> list[str]:
    """Fields of the `model` section that set the initialisation to another value than the architecture's own."""
    own = hf_arch.config_from_dict(
        {"architecture": recipe.model["architecture"], "plugins": recipe.model.get("plugins")}
    )
    given = {key for key, value in _leaves(recipe.model) if _INITIALISATION.search(key)}
    mine, defaults = dict(_leaves(config.to_dict())), dict(_leaves(own.to_dict()))
    return sorted(key for key in given if mine.get(key) != defaults.get(key))


_INITIALISATION = re.compile(r"(^|_)init(ializer)?(_|$)")


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(last key, value) of everything in nested mappings and lists."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, str(key))
    elif isinstance(node, list) and any(isinstance(item, Mapping) for item in node):
        for item in node:
            yield from _leaves(item, name)
    else:
        yield name, node
