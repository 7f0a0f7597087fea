"""The page on environment variables, made from the code: `python -m tools.environment_page > docs/environment.md`."""

from __future__ import annotations

from hf_arch.environment import VARIABLES

_HEAD = """# Environment variables

Made by `python -m tools.environment_page > docs/environment.md`; a test keeps it equal to the code.

These are all the variables that hf_arch reads or sets. A variable that begins with `HF_ARCH_` and is not in this table
is reported once on stderr, with the nearest name. The command line also reads the file `.env` of the working folder; a
variable that is already set wins over it. Libraries have variables of their own (`HF_HOME`, `HF_TOKEN`,
`HF_HUB_OFFLINE`, ...), which keep their meaning.
"""


def page() -> str:
    """The whole page as Markdown."""
    groups = dict.fromkeys(variable.group for variable in VARIABLES.values())
    return _HEAD + "".join(_table(group) for group in groups)


def _table(group: str) -> str:
    lines = [f"\n## {group}", "", "| variable | meaning | default | allowed |", "|---|---|---|---|"]
    for name, variable in VARIABLES.items():
        if variable.group == group:
            allowed = ", ".join(f"`{choice}`" for choice in variable.choices) or variable.allowed
            lines.append(f"| `{name}` | {variable.meaning} | {variable.default} | {allowed} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
