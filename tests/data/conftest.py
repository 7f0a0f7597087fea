from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.texts import make_text


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(make_text(0, 3000), encoding="utf-8")
    return path
