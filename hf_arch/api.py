"""The public functions on configurations: list them, make them from a recipe's dict, describe them, count what
they cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from .core.errors import ConfigError, describe_choices, unknown_key_error
from .core.options import mistyped, one_line
from .core.plugins import load_plugins
from .core.registry import ARCHITECTURES, FFNS, MIXERS
from .deprecations import current_names
from .models.components import option_names
from .models.configuration import ArchConfig
from .models.cost import ModelCost, model_cost
from .models.describe import describe

__all__ = ["config_from_dict", "config_options", "cost", "describe", "list_architectures", "tiny_config"]


def list_architectures() -> list[str]:
    """Short names of the registered architectures, sorted; `hfa_<name>` is the model_type of each."""
    return list(ARCHITECTURES)


def tiny_config(name: str, **overrides: Any) -> ArchConfig:
    """A config of a few thousand parameters with every feature of the architecture on; `overrides` are config fields.

    Raises:
        ConfigError: `name` is not registered, or `overrides` has a key that the config does not have.
    """
    entry = ARCHITECTURES.get(name)
    overrides = current_names("model", overrides)
    known = {f.name for f in fields(entry.config)}
    for key in overrides:
        # transformers keeps any keyword as an attribute of the config, where nothing would read it
        if key not in known and not hasattr(entry.config, key) and key != "attn_implementation":
            named = known | _flat_options(overrides, entry.config)
            if key not in named:
                raise unknown_key_error(name, key, named - _NOT_FOR_RECIPES)
    return entry.tiny_config(**overrides)


def config_options(name: str) -> list[dict[str, Any]]:
    """Every key that a config of the architecture `name` takes: `key`, `default`, and `of`, the part it belongs to
    (`config`, or a mixer or FFN that the architecture has by default, `gla`).

    Raises:
        ConfigError: an architecture that does not exist.
    """
    config_class = ARCHITECTURES.get(name, "architecture").config
    config = config_class()
    rows = [
        {"key": f.name, "default": getattr(config, f.name), "of": "config"}
        for f in fields(config_class)
        if f.name not in _NOT_FOR_RECIPES
    ]
    taken = {row["key"] for row in rows}
    for kind, component in _default_components({}, config_class):
        defaults = {f.name: f.default for f in fields(component.Options) if f.name not in taken}
        rows += [
            {"key": key, "default": defaults[key], "of": kind} for key in option_names(component) if key in defaults
        ]
        taken |= set(defaults)
    return rows


def cost(config: ArchConfig, seq_len: int, batch_size: int = 1) -> ModelCost:
    """Parameters, FLOPs and state bytes of a model with this config; see `hf_arch.models.cost.ModelCost`."""
    if not isinstance(config, ArchConfig):
        raise ConfigError(f"config: expected a config, got {config!r}; `hf_arch.tiny_config('gla')` makes one")
    return model_cost(config, seq_len, batch_size)


def config_from_dict(model: dict[str, Any]) -> ArchConfig:
    """The config that a recipe's `model` section asks for.

    Args:
        model: config fields and flat component options, with `architecture` (a short name); `plugins` may list files
        to import first.

    Raises:
        ConfigError: one line; an unknown key names the nearest known one.
    """
    values = current_names("model", model)
    load_plugins(values.pop("plugins", None) or [])
    if "architecture" not in values:
        choices = describe_choices("", ARCHITECTURES, ARCHITECTURES.listing)
        raise ConfigError(f"model: no `architecture`; {choices}", field="model", allowed=ARCHITECTURES)
    name = values.pop("architecture")
    config_class = ARCHITECTURES.get(str(name), "model.architecture").config
    known = [f.name for f in fields(config_class) if f.name not in _NOT_FOR_RECIPES]
    for key in values:
        if key not in known and key not in _flat_options(values, config_class):
            allowed = {*known, *_flat_options(values, config_class)}
            raise unknown_key_error("model", key, allowed, f"hf-arch info {name} --options")
    try:
        return config_class(**values)
    except ConfigError as error:
        raise error.within("model") from None
    except (StrictDataclassError, TypeError) as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__.within("model") from None
        wrong = mistyped(config_class, values) or ConfigError(one_line(error))
        raise wrong.within("model") from None


_NOT_FOR_RECIPES = {
    "architectures",
    "transformers_version",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "output_hidden_states",
    "return_dict",
}


def _flat_options(values: dict[str, Any], config_class: type[ArchConfig]) -> set[str]:
    """Options of the mixers and FFNs that this section names, or that the architecture has by default."""
    return {name for _, part in _default_components(values, config_class) for name in option_names(part)}


def _default_components(values: dict[str, Any], config_class: type[ArchConfig]) -> Iterator[tuple[str, Any]]:
    """(name, class) of the mixers and FFNs that a section names, or that the architecture has by default."""
    defaults: dict[str, Any] = {f.name: f for f in fields(config_class)}
    for field_name, registry in (("mixer", MIXERS), ("ffn", FFNS)):
        default = defaults[field_name]
        value = values.get(
            field_name, default.default if isinstance(default.default, str) else default.default_factory()
        )
        for spec in value if isinstance(value, list) else [value]:
            kind = spec.get("type", default.default) if isinstance(spec, dict) else str(spec).split("*")[0].strip()
            yield kind, registry.get(kind, f"model.{field_name}")
