"""docs/parts.md and docs/contracts.md say what the registries and the contracts say."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_arch.cli.new import KINDS
from tools import contracts_page, parts_page

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("name", "module"), [("parts", parts_page), ("contracts", contracts_page)])
def test_the_page_is_that_of_the_code(name, module):
    written = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert written == module.page(), f"run: python -m tools.{name}_page > docs/{name}.md"
    assert "\n@" not in written.split("```python")[0]


def test_every_kind_has_its_contract_and_file():
    page = contracts_page.page()
    assert set(contracts_page.BASES) == set(KINDS)
    for kind in KINDS:
        assert f"\n## {kind}\n" in page and page.count("```python") == len(KINDS)
