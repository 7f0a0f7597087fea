"""`key=value` changes from a command line, to a recipe or to one config."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from hf_arch.core.errors import ConfigError
from hf_arch.recipe.dotted import set_dotted
from hf_arch.recipe.yaml_text import parse_override


def config_overrides(texts: Iterable[str], sections: Iterable[str]) -> dict[str, Any]:
    """Changes to a config, nested; `model.hidden_size=64` means what `hidden_size=64` does.

    Raises:
        ConfigError: a key of another section of a recipe: one config has none.
    """
    changes: dict[str, Any] = {}
    for key, value in map(parse_override, texts):
        section, _, rest = key.partition(".")
        if section == "model" and rest:
            key = rest
        elif rest and section in sections:
            raise ConfigError(
                f"override {key}: there is no section {section!r} here, this changes one config; e.g. hidden_size=64",
                field=key,
                value=value,
            )
        changes = set_dotted(changes, key, value)
    return changes


def key_advice(key: str, sections: Mapping[str, Collection[str]]) -> str:
    """What a key without a section may have meant, by the keys of each section; `model.` where none knows it."""
    head = key.partition(".")[0]
    found = [f"{name}.{key}" for name, known in sections.items() if head in known]
    return f"perhaps {' or '.join(found or [f'model.{key}'])}"
