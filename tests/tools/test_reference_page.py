"""docs/architectures.md is what the registry says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.reference_page import page


@pytest.mark.rest
def test_the_page_on_architectures_is_up_to_date():
    written = (Path(__file__).parents[2] / "docs/architectures.md").read_text()
    assert written == page(), "run: python -m tools.reference_page > docs/architectures.md"
