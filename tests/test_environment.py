"""Every environment variable is in the table, and a misspelt one of ours is told."""

from __future__ import annotations

import ast
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_arch.core import warn
from hf_arch.core.errors import ConfigError
from hf_arch.environment import VARIABLES, known, read, set_variable, temporarily, warn_unknown
from tools.environment_page import page

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ("hf_arch", "scripts", "tools", "recipes") for path in (ROOT / folder).rglob("*.py")
)
OUTSIDE = {
    "CI",
    "PYENV_ROOT",
    "PYTHON",
    "BASH_SOURCE",
    "HOME",
    "PWD",
    "SECONDS",
    "PYTHONPATH",
}  # of the shell and of CI itself


def misused(tree: ast.AST) -> Iterator[int]:
    """Lines that take a variable by name past `hf_arch.environment`; the environment as a whole may be handed on."""
    whole = {id(value) for node in ast.walk(tree) if isinstance(node, ast.Dict)
             for key, value in zip(node.keys, node.values, strict=True) if key is None}  # fmt: skip
    whole |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "items"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb") and id(node) not in whole:
            yield node.lineno
        if isinstance(node, ast.Attribute) and node.attr in ("getenv", "putenv", "unsetenv"):
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (node.lineno for alias in node.names if alias.name in ("environ", "getenv", "putenv"))


@pytest.mark.parametrize(
    "code",
    [
        'os.environ["A"]', 'os.environ.get("A")', "os.environ.setdefault('A', '')", "'A' in os.environ",
        "os.getenv('A')",
        "from os import environ", "x = os.environ", "f(os.environ)", "del os.environ['A']", "os.environ.update({})",
    ],
)  # fmt: skip
def test_taking_a_variable_by_name_is_seen(code: str) -> None:
    assert list(misused(ast.parse(code))) == [1]


@pytest.mark.parametrize("code", ["{**os.environ, 'A': 'b'}", "[v for n, v in os.environ.items()]"])
def test_handing_the_whole_environment_on_is_allowed(code: str) -> None:
    assert not list(misused(ast.parse(code)))


def test_no_file_takes_a_variable_past_the_table() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        if path != ROOT / "hf_arch/environment.py"
        for line in misused(ast.parse(path.read_text()))
    ]
    assert not found, f"read them by hf_arch.environment, and list them there: {found}"


def test_every_variable_that_is_named_anywhere_is_in_the_table() -> None:
    """Those of ours by their prefix, in any kind of file; those of scripts where a shell reads them."""
    text = "\n".join(
        path.read_text()
        for pattern in ("hf_arch/**/*.py", "docs/*.md", "recipes/**/*", "scripts/*", "*.md", ".ci/run")
        for path in ROOT.glob(pattern)
        if path.is_file() and path.name != "CHANGELOG.md"
    )
    assert set(re.findall(r"\bHF_ARCH_[A-Z0-9_]*[A-Z0-9]\b", text)) <= set(VARIABLES)
    shell = "\n".join(path.read_text() for path in [*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci/run"])
    assert set(re.findall(r"\$\{?([A-Z][A-Z0-9_]+)", shell)) <= set(VARIABLES) | OUTSIDE


def test_every_listed_variable_is_used() -> None:
    """By its whole name; by tests alone only those that are listed as theirs."""

    def named(*folders: str) -> set[str]:
        files = [
            path
            for folder in folders
            for path in (ROOT / folder).rglob("*")
            if path.suffix in (".py", ".sh") and path.name not in ("environment.py", "test_environment.py")
        ]
        return {word for path in files for word in re.findall(r"\b[A-Z][A-Z0-9_]+\b", path.read_text())}

    ours, tests = named("hf_arch", "scripts", "tools", "recipes"), named("tests")
    unused = {
        name for name, entry in VARIABLES.items() if name not in ours | (tests if "Tests" in entry.group else ours)
    }
    assert not unused


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs/environment.md").read_text() == page(), (
        "run: python -m tools.environment_page > docs/environment.md"
    )


def test_an_unlisted_variable_cannot_be_read_or_set() -> None:
    with pytest.raises(KeyError):
        read("HF_ARCH_NEW")
    for change in (lambda: set_variable("NEW", "1"), lambda: temporarily({"NEW": "1"}).__enter__()):
        with pytest.raises(AssertionError):
            change()


@pytest.mark.parametrize("name", [name for name, variable in VARIABLES.items() if variable.choices])
def test_a_value_that_is_not_a_choice_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for choice in VARIABLES[name].choices:
        monkeypatch.setenv(name, choice.upper())
        assert read(name) == choice
    monkeypatch.setenv(name, "")
    assert read(name) is None
    monkeypatch.setenv(name, "2much")
    with pytest.raises(ConfigError, match=rf"^{name}: '2much' is not known; .*allowed: "):
        read(name)


def test_settings_are_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    before = dict(os.environ)
    with temporarily({"WANDB_MODE": "offline", "WANDB_DIR": "x"}):
        assert (read("WANDB_MODE"), read("WANDB_DIR")) == ("online", "x")
        assert known()["WANDB_DIR"] == "x"
    with temporarily({"WANDB_MODE": "offline"}, replace=True):
        assert read("WANDB_MODE") == "offline"
    assert dict(os.environ) == before
    set_variable("WANDB_MODE", "offline")
    assert read("WANDB_MODE") == "online"


def test_a_misspelt_variable_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(warn, "_given", set())
    monkeypatch.setenv("HF_ARCH_CACHEDIR", "x")
    monkeypatch.setenv("HF_ARCH_CACHE", "x")
    with caplog.at_level(logging.WARNING, "hf_arch"):
        warn_unknown()
        warn_unknown()
    assert [record.getMessage() for record in caplog.records] == [
        "warning: HF_ARCH_CACHEDIR: not a variable of hf_arch; nearest: HF_ARCH_CACHE"
    ]
