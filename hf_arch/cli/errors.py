"""How an error ends a command: one line on stderr, and the exit code that belongs to its kind."""

from __future__ import annotations

import sys
import time
import traceback
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from hf_arch import environment
from hf_arch.core.errors import ConfigError
from hf_arch.core.failures import Interrupted, TrainingError

# All processes of a launch find the same mistake; once the first has told it, the launcher ends the others.
RANK_ERROR_DELAY_SECONDS = 10.0

LIMITS = {"ge": "expected at least", "le": "expected at most"}
KINDS = {"int": "a whole number", "float": "a number"}


class OneLineErrors(TyperGroup):
    """Turns every error into one line on stderr and the exit code that belongs to it."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except Exception as error:
            sys.exit(_report_error(error))
        except Interrupted as error:
            sys.exit(_print_error(str(error), error.exit_code))
        sys.exit(code if isinstance(code, int) else 0)


def _report_error(error: Exception) -> int:
    """Prints `error` as its kind deserves and returns the exit code."""
    if isinstance(error, ConfigError):
        if (environment.read("RANK") or "0") != "0":
            time.sleep(RANK_ERROR_DELAY_SECONDS)
        return _print_error(str(error), 2)
    if isinstance(error, USAGE_ERROR):
        if type(error).show is USAGE_ERROR.show:
            return _print_error(_wrong_value(error) or error.format_message(), 2)
        error.show()  # in its own way: the help of a command that was given no arguments
        return 2
    if isinstance(error, typer.Abort):
        return _print_error("interrupted", 1)
    if isinstance(error, TrainingError):
        return _print_error(str(error), 1)
    torch = sys.modules.get("torch")
    if not isinstance(error, OSError if torch is None else (OSError, torch.OutOfMemoryError)):
        traceback.print_exception(error)
    return _print_error(f"{type(error).__name__}: {error}", 1)


def _wrong_value(error: Any) -> str | None:
    """The line for an option's value that is not of its type or range, which newer releases of typer check by pydantic;
    None where the message of the error itself has to do."""
    cause, option = error.__cause__, getattr(error, "param", None)
    if option is None or not hasattr(cause, "errors"):
        return None
    fault = cause.errors(include_url=False)[0]
    limits = fault.get("ctx") or {}
    for key, words in LIMITS.items():
        if key in limits:
            return f"{option.opts[0]}: {fault['input']!r} is not allowed; {words} {limits[key]}; nearest: {limits[key]}"
    kind = KINDS.get(fault["type"].partition("_")[0])
    return None if kind is None else f"{option.opts[0]}: {fault['input']!r} is not allowed; expected {kind}"


def _print_error(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""click's UsageError, which typer has a copy of its own of; it exports the subclass alone."""
