"""How an architecture is entered: its name, config, model classes, a tiny version for tests, and where it comes
from."""

from dataclasses import dataclass, field
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from ...core.bundled import BUNDLED
from ...core.registry import ARCHITECTURES
from ...layers.compat import modeling_auto, name_table
from ..configuration import ArchConfig

AUTO_CLASSES: dict[str, Any] = {
    "model": AutoModel,
    "causal_lm": AutoModelForCausalLM,
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
}
# A few thousand parameters, sizes that differ wherever a mistake could hide behind equal ones.
TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Architecture:
    """An entry of `hf_arch.core.registry.ARCHITECTURES`.

    Attributes:
        name: short name; the config's model_type is `hfa_<name>`.
        summary: one line for `hf-arch list`. paper: where it was published.
        tiny: config values that, over `TINY`, switch every feature of this architecture on.
    """

    name: str
    config: type[ArchConfig]
    model: type
    causal_lm: type
    sequence_classification: type
    token_classification: type
    question_answering: type
    summary: str
    paper: str
    tiny: dict[str, Any] = field(default_factory=dict)

    def tiny_config(self, **overrides: Any) -> ArchConfig:
        return self.config(**{**TINY, **self.tiny, **overrides})


def register_architecture(entry: Architecture) -> Architecture:
    """Enter an architecture here, with transformers' Auto classes, and in transformers' tables of names.

    Raises:
        ConfigError: the name is that of another architecture.
    """
    return ARCHITECTURES.register(entry.name)(entry)


def enter_auto_classes(entry: Architecture) -> None:
    """Make the Auto classes and transformers' tables of names know an architecture, or its other version.

    A model that brings its own code does not claim its model_type: the next repository brings its own classes for it.
    """
    model_type = entry.config.model_type
    if not BUNDLED:
        AutoConfig.register(model_type, entry.config, exist_ok=True)
    for kind, auto_class in AUTO_CLASSES.items():
        model_class = getattr(entry, kind)
        # By name: after a reload of that module its class is another one.
        getattr(modeling_auto, auto_class.__name__).register(entry.config, model_class, exist_ok=True)
        name_table(kind)[model_type] = model_class.__name__


ARCHITECTURES.entered = enter_auto_classes


def register_again() -> None:
    """Enter every architecture once more, for the Auto classes that a reload of their module has made."""
    for _, entry in ARCHITECTURES.items():
        enter_auto_classes(entry)
