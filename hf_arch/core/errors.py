"""One-line errors for a user's mistakes: the field, the value, what is allowed, and the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A wrong option, key or file named by the user. The command line prints it as one line and exits with code 2."""


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The entry of `allowed` that reads most like `name`, or None where nothing comes close."""
    options = sorted(str(option) for option in allowed)
    matches = difflib.get_close_matches(str(name), options, n=1, cutoff=0.5)
    if matches:
        return matches[0]
    inside = [option for option in options if str(name) and (str(name) in option or option in str(name))]
    return inside[0] if inside else None


def choice_error(field: str, value: object, allowed: Iterable[str]) -> ConfigError:
    """Error for a value outside a closed list, e.g. `model.norm: 'rmsnrm' is not known; nearest: 'rmsnorm';
    allowed: ...`."""
    options = sorted(str(option) for option in allowed)
    near = nearest(str(value), options)
    hint = f"; nearest: {near!r}" if near else ""
    return ConfigError(f"{field}: {value!r} is not known{hint}; allowed: {', '.join(options)}")


def unknown_key_error(where: str, key: str, allowed: Iterable[str]) -> ConfigError:
    """Error for an option name that does not exist, e.g. `training: unknown key 'max_step'; nearest: 'max_steps'`."""
    options = sorted(str(option) for option in allowed)
    near = nearest(key, options)
    hint = f"nearest: {near!r}" if near else f"allowed: {', '.join(options)}"
    return ConfigError(f"{where}: unknown key {key!r}; {hint}")
