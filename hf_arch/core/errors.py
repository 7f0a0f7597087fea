"""Errors that carry what they say: the field, the value, what is allowed, and the nearest valid choice.

Nothing decides by the text of a message: whoever catches one of these reads its class and its attributes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Self

NEAR_ONES = 5  # shown next to an unknown key
MOST_LISTED = 16  # longer lists are left to the command that shows them


class ConfigError(ValueError):
    """A wrong option, key or file named by the user. The command line prints it as one line and exits with code 2.

    field: the dotted option or the file that is wrong. value: what was given. allowed: what may stand there, where
    that is a closed list. nearest: the entry of `allowed` that reads most like the value. Each is None or empty where
    the error does not say.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        value: object = None,
        allowed: Iterable[str] = (),
        nearest: str | None = None,
    ) -> None:
        super().__init__(message)
        self.field, self.value, self.allowed, self.nearest = field, value, tuple(allowed), nearest

    def within(self, field: str, separator: str = ".") -> Self:
        """The same error, of the same class, about a part of `field`: `norm` within `model` is `model.norm`."""
        inner = f"{field}.{self.field}" if self.field is not None else field
        facts = {"field": inner, "value": self.value, "allowed": self.allowed, "nearest": self.nearest}
        return type(self)(f"{field}{separator}{self}", **facts)  # type: ignore[arg-type]

    def advised(self, advice: str) -> Self:
        """The same error with `; advice` at the end of its line."""
        return type(self)(
            f"{self}; {advice}", field=self.field, value=self.value, allowed=self.allowed, nearest=self.nearest
        )


class UnknownKeyError(ConfigError):
    """An option name that does not exist; `value` is the name."""


class UnknownChoiceError(ConfigError):
    """A value outside a closed list."""


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The entry of `allowed` that reads most like `name`, or None where nothing comes close."""
    return next(iter(near_ones(name, allowed, most=1)), None)


def near_ones(name: str, allowed: Iterable[str], most: int = NEAR_ONES) -> list[str]:
    """Up to `most` entries of `allowed` that read like `name`, the likest first."""
    options = sorted(str(option) for option in allowed)
    matches = difflib.get_close_matches(str(name), options, n=most, cutoff=0.5)
    inside = [option for option in options if str(name) and (str(name) in option or option in str(name))]
    return list(dict.fromkeys([*matches, *inside]))[:most]


def describe_choices(value: object, allowed: Iterable[str], listing: str | None = None, most: int = 1) -> str:
    """What may stand in place of `value`, as the end of an error: `nearest: 'rmsnorm'; allowed: layernorm, rmsnorm`,
    with up to `most` near ones.

    Of more than `MOST_LISTED` names that the command `listing` shows, the near ones alone and the command:
    `nearest: 'gla', 'gsa'; all 47: hf-arch list`.
    """
    options = sorted(str(option) for option in allowed)
    near = near_ones(str(value), options)
    if listing is not None and len(options) > MOST_LISTED:
        end = f"all {len(options)}: {listing}"
    else:
        near, end = near[:most], f"allowed: {', '.join(options)}"
    return f"nearest: {', '.join(map(repr, near))}; {end}" if near else end


def choice_error(
    field: str, value: object, allowed: Iterable[str], listing: str | None = None, what: str = "not known"
) -> UnknownChoiceError:
    """Error for a value outside a closed list, e.g. `model.norm: 'rmsnrm' is not known; nearest: 'rmsnorm';
    allowed: ...`. `listing` is the command that shows a long list, `what` says what the value is not."""
    options = sorted(str(option) for option in allowed)
    message = f"{field}: {value!r} is {what}; {describe_choices(value, options, listing)}"
    return UnknownChoiceError(message, field=field, value=value, allowed=options, nearest=nearest(str(value), options))


def unknown_key_error(where: str, key: str, allowed: Iterable[str], listing: str | None = None) -> UnknownKeyError:
    """Error for an option name that does not exist, e.g. `training: unknown key 'max_step'; nearest: 'max_steps'; ...`.
    `listing` is the command that shows a long list."""
    options = sorted(str(option) for option in allowed)
    message = f"{where}: unknown key {key!r}; {describe_choices(key, options, listing, NEAR_ONES)}"
    return UnknownKeyError(message, field=where, value=key, allowed=options, nearest=nearest(key, options))
