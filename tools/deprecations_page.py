"""The page on renamed keys, made from the code: `python -m tools.deprecations_page > docs/deprecations.md`."""

from __future__ import annotations

from hf_arch.deprecations import MINOR_VERSIONS, RENAMED

_HEAD = f"""# Renamed fields and keys

Made by `python -m tools.deprecations_page > docs/deprecations.md`; a test keeps it equal to the code.

A config field, an option of a component or a key of a recipe that gets another name keeps its old one for
{MINOR_VERSIONS} minor versions. Until then the old name is read as the new one, from recipes, `config.json` and Python,
with one warning line that names the new one; giving both is an error. What is written carries the new name. To rename a
key, add a line to `RENAMED` in `hf_arch/deprecations.py`.

"""


def page() -> str:
    """The whole page as Markdown."""
    if not RENAMED:
        return _HEAD + "Nothing has been renamed so far.\n"
    lines = ["| where | old name | new name | since version | gone in version |", "|---|---|---|---|---|"]
    lines += [f"| {entry.where} | `{entry.old}` | `{entry.new}` | {entry.since} | {entry.until} |" for entry in RENAMED]
    return _HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
