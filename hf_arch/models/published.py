"""What layers hand to later ones by name: checked when a config is made."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hf_arch.core.errors import ConfigError


def check_published(config: Any) -> None:
    """Raises ConfigError where a layer needs a value that no earlier one publishes, or one that only publishes is read
    by nobody."""
    published: set[str] = set()
    for index, (mixer, options) in enumerate(config.mixer_specs):
        missing = [name for name in mixer.needs(config, options, index) if name not in published]
        if missing:
            raise ConfigError(
                f"mixer: layer {index} ({mixer.__name__}) needs {missing[0]!r}, which no earlier layer publishes; "
                f"published before it: {', '.join(sorted(published)) or 'nothing'}"
            )
        names = mixer.publishes(config, options, index)
        published.update(names)
        if not mixer.writes and not _is_read(config, index, names):
            raise ConfigError(
                f"mixer: layer {index} ({mixer.__name__}) would have no effect, since no later layer reads what it "
                "publishes; add one that does (cross_attention reads a kv_builder's keys), or leave it out"
            )


def _is_read(config: Any, layer: int, names: Collection[str]) -> bool:
    """Whether a later layer needs one of these values before another publishes all of them anew."""
    for index, (mixer, options) in enumerate(config.mixer_specs[layer + 1 :], layer + 1):
        if set(names) & set(mixer.needs(config, options, index)):
            return True
        if set(names) <= set(mixer.publishes(config, options, index)):
            return False
    return False
