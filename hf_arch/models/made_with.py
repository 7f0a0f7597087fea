"""The config that a model was made with: what is set on it afterwards, and the model does not follow, is refused.

A finished model has copied its sizes, norms, rotations and windows. An edit of `model.config` would change nothing
but what is saved: the file would then describe another model than its weights are of.
"""

from __future__ import annotations

import copy
from dataclasses import fields
from operator import itemgetter
from typing import Any

from ..core.errors import ConfigError
from .common_names import READABLE, WRITABLE
from .configuration import ArchConfig

FOLLOWED = frozenset(
    {
        "attention_dropout",
        "bos_token_id",
        "classifier_dropout",
        "embedding_multiplier",
        "eos_token_id",
        "final_logit_softcapping",
        "init",
        "initializer_range",
        "logits_scaling",
        "loss_chunk_size",
        "max_logit_penalty",
        "max_position_embeddings",
        "pad_token_id",
        "prefix_lm",
        "rescale_residual_init",
        "tie_word_embeddings",
        "use_cache",
        "vocab_size",
    }
)
"""Fields that a model reads at each call, that act on new weights alone, or that transformers changes with the
weights."""
COPIED = tuple(entry.name for entry in fields(ArchConfig) if entry.name in ArchConfig.__annotations__.keys() - FOLLOWED)
"""Fields that a model reads once, when it is made."""
_FOLLOWED_OPTIONS = frozenset(READABLE[name] for name in WRITABLE)
_fields_of = itemgetter(*COPIED)
_LONGEST = 60


class MadeWith:
    """What the fields in `COPIED` were when a model was made of `config`."""

    def __init__(self, config: Any) -> None:
        self._given = _fields_of(vars(config))
        self._values = {name: copy.deepcopy(_copied(value)) for name, value in zip(COPIED, self._given, strict=True)}

    def check_call(self, config: Any) -> None:
        """As `check`, where a field was set since; at every call, so that it has to cost next to nothing. A dict that
        was changed in place is found when the model is saved."""
        now = _fields_of(vars(config))
        if now != self._given:
            self.check(config)
            self._given = now

    def check(self, config: Any) -> None:
        """Raise a ConfigError for a field of `config` that is not what it was."""
        for name, value in self._values.items():
            now = getattr(config, name)
            if _copied(now) != value:
                raise ConfigError(
                    f"config.{name}: {_short(now)} was set after the model was made with {_short(value)}, and it does "
                    "not follow; set it back, or make a new model of the config"
                )


def _copied(value: Any) -> Any:
    """A field without the options that a finished model follows."""
    if isinstance(value, dict):
        return {name: option for name, option in value.items() if name not in _FOLLOWED_OPTIONS}
    return [_copied(entry) for entry in value] if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
