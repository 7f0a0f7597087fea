"""`init` of a config: a source that its components know, or a policy of a plugin with its options."""

from __future__ import annotations

from typing import Any

from ..core.errors import ConfigError, choice_error
from ..core.registry import INITS
from .components import parse, resolve, with_type


def resolved_init(config: Any) -> str | dict[str, Any] | None:
    """The field in its stored form: the name of a source, or a policy as a dict with every option that is set. Raises
    `ConfigError` for an option that the policy does not have."""
    given = config.init
    if given is None or (isinstance(given, str) and (given in config.inits or given not in INITS)):
        return given
    found = resolve(with_type(given, INITS, "init", None), INITS, "init")
    assert isinstance(found, dict)
    return str(found["type"]) if INITS[found["type"]].of_components else found


def check_init(config: Any) -> None:
    """Raises `ConfigError` for a source that no component knows, and a policy that does not fit the config."""
    if isinstance(config.init, dict):
        policy, given = parse(config.init, INITS, "init")
        if config.parametrization_spec[0].changes_groups and not policy.follows_parametrization:
            raise ConfigError(
                f"init: {config.init['type']!r} is not supported with parametrization "
                f"{config.parametrization['type']}, which sets initial values by size"
            )
        policy.validate(config, given)
    elif config.init is not None and config.init not in config.inits:
        of_plugins = [name for name, policy in INITS.items() if not policy.of_components]
        raise choice_error("init", config.init, [*config.inits, *of_plugins])
