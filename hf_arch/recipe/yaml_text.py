"""YAML as recipes use it: `1e-3` is a number, `no` is a word, duplicate keys are refused, every mistake is one line.

PyYAML reads YAML 1.1, which takes `1e-3` for text (it asks for a dot and a sign) and `eval_strategy: no` for false, and
keeps the last of two equal keys without a word. Here numbers and booleans are those of YAML 1.2.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from hf_arch.core.errors import ConfigError

MAX_VALUES = 100_000


class _RecipeLoader(yaml.SafeLoader):
    """SafeLoader with the floats and booleans of YAML 1.2, and without silent duplicates."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # no plain key; the parent class refuses what cannot be one
            key = key_node.value
            if key_node.tag != "tag:yaml.org,2002:merge" and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def read_yaml(path: Path) -> Any:
    """The document in `path`. Raises `ConfigError` of one line where the file is missing, unreadable, empty or
    malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, expected a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    document = parse_yaml(text, str(path))
    if document is None:
        raise ConfigError(f"{path}: is empty")
    return document


def parse_yaml(text: str, where: str) -> Any:
    """The value that `text` holds; `where` names it in the error."""
    try:
        value = yaml.load(text, Loader=_RecipeLoader)  # a SafeLoader: builds plain values only
        _check_tree(value, where)
        return value
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{place}: {' '.join((error.problem or 'not YAML').split())}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ConfigError(f"{where}: is nested too deep") from None
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        # PyYAML builds dates, tagged numbers and the like without looking: 2020-13-45, `!!int x`.
        raise ConfigError(f"{where}: contains a value that cannot be read: {error}") from error


def _check_tree(value: Any, where: str) -> None:
    """Raises `ConfigError` for a document that aliases make endless, or larger than any recipe."""
    room = MAX_VALUES

    def visit(node: Any, above: tuple[int, ...]) -> None:
        nonlocal room
        room -= 1
        if id(node) in above:
            raise ConfigError(f"{where}: an anchor (&) contains an alias (*) of itself")
        if room < 0:
            raise ConfigError(f"{where}: contains more than {MAX_VALUES:,} values; look for aliases (*) of aliases")
        if isinstance(node, (dict, list)):
            for child in node.values() if isinstance(node, dict) else node:
                visit(child, (*above, id(node)))

    visit(value, ())


def parse_override(text: str) -> tuple[str, Any]:
    """`training.learning_rate=1e-3` as ("training.learning_rate", 0.001)."""
    key, equals, value = text.partition("=")
    if not equals or not key or any(not part for part in key.split(".")):
        raise ConfigError(f"override {text!r}: expected key=value with a dotted key, e.g. training.max_steps=100")
    return key, parse_yaml(value, f"override {key}")
