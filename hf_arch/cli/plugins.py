"""Users' plugins on the command line: the option that chooses their version, and those that overrides name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from hf_arch.cli import completion


def _choose(choice: str) -> str:
    from hf_arch.checkpoints.plugin_copies import choose_plugin_code

    return choose_plugin_code(choice)


PluginCode = Annotated[
    str,
    typer.Option(
        **completion.choices("run|current"),
        help="Which code of a run's plugins: the copy in the run folder, or the original file as it is now.",
        callback=_choose,
    ),
]


def load_override_plugins(overrides: Iterable[str]) -> None:
    """Imports the files of `plugins=[...]` or `model.plugins=[...]` among `key=value` texts, before names that they may
    register are looked up. Raises `ConfigError` where one cannot be loaded."""
    from hf_arch.core.plugins import load_plugins
    from hf_arch.recipe.sections import coerce
    from hf_arch.recipe.yaml_text import parse_override

    for text in overrides:
        if text.partition("=")[0].strip() in ("plugins", "model.plugins"):
            key, value = parse_override(text)
            load_plugins(coerce(value, list[str], key))
