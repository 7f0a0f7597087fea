"""The text that every Python carries: the language reference and the docstrings of the standard library.

The sources are parsed, never imported. The text is the same on every machine with the same Python version, and another
with another version: a fallback without any download, not a corpus for numbers that are compared across machines.
"""

from __future__ import annotations

import ast
import importlib
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hf_arch.core.registry import CORPORA
from hf_arch.data.cache import hash_text
from hf_arch.data.corpus import part_range
from hf_arch.data.options import DataOptions

_VERSION = 1
_HELD_OUT_ONE_IN = 10
_SHORTEST_DOCSTRING = 80


@dataclass(frozen=True)
class PythonDocs:
    """One document a help topic and one a standard module with docstrings; a tenth of each, by name, is held out."""

    name = "python-docs"

    @property
    def attribution(self) -> str:
        version = ".".join(map(str, sys.version_info[:3]))
        return f"Language reference and standard library docstrings of Python {version}, PSF License."

    def fingerprint(self) -> str:
        return hash_text(_VERSION, sys.implementation.name, sys.version)

    def documents(self, split: str, part: int = 0, parts: int = 1) -> Iterator[str]:
        named = _named_documents()
        names = [name for name in sorted(named) if _held_out(name) == (split == "validation")]
        for number in part_range(len(names), part, parts):
            yield named[names[number]]


@CORPORA.register(PythonDocs.name)
def open_python_docs(options: DataOptions, cache: Path, *, progress: bool = True) -> PythonDocs:
    """The language reference and docstrings of this interpreter; needs no download."""
    return PythonDocs()


def _held_out(name: str) -> bool:
    return zlib.crc32(name.encode()) % _HELD_OUT_ONE_IN == 0


@lru_cache(maxsize=1)
def _named_documents() -> dict[str, str]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    named = {f"topic {name}": text for name, text in topics.items() if text.strip()}
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library).with_suffix("")
        if "site-packages" in module.parts or "dist-packages" in module.parts or _is_test(module):
            continue
        docstrings = "\n\n".join(_docstrings(path))
        if docstrings:
            named[f"module {'.'.join(module.parts)}"] = f"{docstrings}\n"
    return named


def _is_test(module: Path) -> bool:
    return any(name in ("test", "tests", "idle_test", "lib2to3") for name in module.parts)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return  # the library holds templates that are not valid Python by themselves
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= _SHORTEST_DOCSTRING:
                yield text
