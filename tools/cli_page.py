"""The page on every command, made from the command line itself: `python -m tools.cli_page > docs/cli.md`."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from typing import Any

import typer

from hf_arch.cli import app

HEAD = """# Every command

Made by `python -m tools.cli_page > docs/cli.md`; a test keeps it equal to the command line. `hf-arch COMMAND --help`
says the same.

Results go to stdout, progress to stderr; `--json` prints one JSON document on stdout and nothing else. Exit codes: 0
done, 1 failed, 2 wrong usage or configuration (one line that names the field); a run that was told to stop ends with
143 (SIGTERM) or 130 (SIGINT).
[usage.md](usage.md) shows the commands at work.
"""


def page() -> str:
    """The whole page as Markdown."""
    return HEAD + "".join(_section(name, command) for name, command in commands())


def commands() -> Iterator[tuple[str, Any]]:
    """(words after `hf-arch`, command) of every command, those of groups too, in the order of their help."""
    yield from _commands(typer.main.get_command(app), "")


def _commands(group: Any, words: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{words}{name} ")
        elif not command.hidden:
            yield f"{words}{name}", command


def _section(name: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join(["hf-arch", name, *map(_value, arguments)])
    lines = [f"\n## hf-arch {name}\n", f"`{usage}`\n", *_help(command.help or "")]
    lines += ["| | value | default | meaning |", "|---|---|---|---|"]
    lines += [_row(_value(argument), "", "", _text(argument.help)) for argument in arguments]
    for option in options:
        if option.name != "help":
            flags = ", ".join([*option.opts, *option.secondary_opts])
            value = "" if option.is_flag else _value(option)
            lines.append(_row(flags, value, _default(option), _text(option.help)))
    return "\n".join(lines) + "\n"


def _value(parameter: Any) -> str:
    """What stands for the value in help: the name that the command gives it, else its type."""
    if parameter.metavar:
        return str(parameter.metavar)
    hint = parameter.type_descriptor.annotation
    hint = typing.get_args(hint)[0] if typing.get_origin(hint) is list else hint
    word = {int: "INTEGER", float: "NUMBER"}.get(hint, "TEXT")
    return word if parameter.min is None else f"{word}>={parameter.min:g}"


def _help(text: str) -> list[str]:
    return [_paragraph(paragraph) for paragraph in re.split(r"\n\s*\n", text.strip()) if paragraph]


def _paragraph(text: str) -> str:
    """On one line; the list of examples as a block to copy from."""
    if text.lstrip().startswith("- `hf-arch "):
        return "\n".join(["```bash", *re.findall(r"`(hf-arch [^`]+)`", " ".join(text.split())), "```\n"])
    return f"{' '.join(text.split())}\n"


def _default(option: Any) -> str:
    default = option.default
    if option.required:
        return "required"
    if default is None or callable(default) or (option.is_flag and not default) or default in ("", [], ()):
        return ""
    return f"`{default}`"


def _text(text: str | None) -> str:
    return " ".join((text or "").split())


def _row(name: str, value: str, default: str, meaning: str) -> str:
    cells = (f"`{name}`", f"`{value}`" if value else "", default, meaning)
    return f"| {' | '.join(cell.replace('|', ', ') for cell in cells)} |"


if __name__ == "__main__":
    print(page(), end="")
