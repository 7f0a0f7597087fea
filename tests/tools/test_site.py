"""The site holds every page and module once, and lists of a docstring read as lists."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tools.site import ROOT, lay_out


def test_every_page_and_public_module_is_on_the_site(tmp_path: Path) -> None:
    lay_out(tmp_path)
    source = tmp_path / "site-source"
    config = yaml.safe_load((tmp_path / "mkdocs.yml").read_text())
    named = str(config["nav"])
    pages = [str(path.relative_to(source)) for path in source.rglob("*.md")]
    assert [page for page in pages if f"'{page}'" not in named] == []
    text = "\n".join(path.read_text() for path in (source / "api").glob("*.md"))
    for path in (ROOT / "hf_arch").rglob("*.py"):
        if not path.stem.startswith("_") and "startup_hook" not in path.parts:
            assert text.count(f"::: {'.'.join(path.relative_to(ROOT).with_suffix('').parts)}\n") == 1


def test_links_of_the_front_page_lead_into_the_site(tmp_path: Path) -> None:
    lay_out(tmp_path)
    front = (tmp_path / "site-source/index.md").read_text()
    assert "](docs/" not in front and "](usage.md)" in front and "](contributing.md)" in front


def test_a_list_of_a_docstring_becomes_a_list() -> None:
    pytest.importorskip("griffe", reason="the extra `docs` is not installed")
    from tools.docstring_lists import as_list

    text = (
        "One.\n\ncorpus: a name\n    or path.\nlength, size: tokens\n\nArgs:\n    a: b\n    c: d\n\nSee: this\nnot that"
    )
    assert as_list(text) == (
        "One.\n\n- `corpus`: a name\n    or path.\n- `length, size`: tokens\n\nArgs:\n    a: b\n    c: d\n\n"
        "See: this\nnot that"
    )
