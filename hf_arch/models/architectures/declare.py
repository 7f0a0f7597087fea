"""An architecture as a declaration: its config class with the defaults that make it, and a line about it.

    @architecture("gla", summary="linear attention with a vector decay", paper="Yang et al. 2023, arXiv 2312.06635")
    class HfaGLAConfig(ArchConfig):
        num_attention_heads: int = 4
        mixer: Component = "gla"

From it come the model classes that transformers expects, `HfaGLAModel`, `HfaGLAForCausalLM` and the three other heads,
as attributes of the module that declares the config: named, importable and picklable like classes written out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from huggingface_hub.dataclasses import strict

from ...core.errors import ConfigError
from ..causal_lm import ArchForCausalLM
from ..configuration import ArchConfig
from ..decoder import ArchModel
from ..heads import ArchForQuestionAnswering, ArchForSequenceClassification, ArchForTokenClassification
from .base import Architecture, register_architecture

ConfigT = TypeVar("ConfigT", bound=ArchConfig)

_SUFFIXES = {
    "model": "Model",
    "causal_lm": "ForCausalLM",
    "sequence_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
}
"""What follows the config's stem in the name of each class; the keys are fields of `Architecture`."""


def architecture(
    name: str,
    *,
    summary: str,
    paper: str,
    tiny: dict[str, Any] | None = None,
    model: type[ArchModel] = ArchModel,
    causal_lm: type[ArchForCausalLM] = ArchForCausalLM,
) -> Callable[[type[ConfigT]], type[ConfigT]]:
    """Class decorator of an `ArchConfig` subclass called `<Stem>Config`: enter it as the architecture `name`.

    Args:
        name: short name; the config's model_type becomes `hfa_<name>`.
        summary, paper: one line for `hf-arch list`; where it was published.
        tiny: config values that switch every feature on, in a model of a few thousand parameters.
        model, causal_lm: bases with methods of their own, such as `_init_weights`.

    Raises:
        ConfigError: the class's name does not end in `Config`.
    """

    def declare(config_class: type[ConfigT]) -> type[ConfigT]:
        stem = config_class.__name__.removesuffix("Config")
        if stem == config_class.__name__:
            raise ConfigError(f"architecture {name}: the class {stem!r} must be called <Name>Config")
        config_class.model_type = f"hfa_{name}"
        config_class = strict(config_class)
        bases: dict[str, type] = {
            "model": model,
            "causal_lm": causal_lm,
            "sequence_classification": ArchForSequenceClassification,
            "token_classification": ArchForTokenClassification,
            "question_answering": ArchForQuestionAnswering,
        }
        made: dict[str, type] = {}
        for kind, base in bases.items():
            body = {
                "__module__": config_class.__module__,
                "__doc__": base.__doc__,
                "__annotations__": {"config": config_class},
                "config_class": config_class,
            }
            if kind == "causal_lm":
                body["model_class"] = made["model"]
            made[kind] = type(f"{stem}{_SUFFIXES[kind]}", (base,), body)
            setattr(sys.modules[config_class.__module__], made[kind].__name__, made[kind])
        register_architecture(
            Architecture(name=name, config=config_class, summary=summary, paper=paper, tiny=tiny or {}, **made)
        )
        return config_class

    return declare
