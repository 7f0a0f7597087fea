"""The check of a release names what is missing, what does not belong there, and what is too large."""

from __future__ import annotations

import io
import tarfile
import tomllib
import zipfile
from pathlib import Path

from tools import distribution

PROJECT = tomllib.loads((distribution.ROOT / "pyproject.toml").read_text())


def test_the_wheel_is_the_package_and_the_recipes():
    wanted = distribution.expected_wheel(
        {"hf_arch/api.py", "hf_arch/py.typed", "recipes/a/b.yaml", "tests/t.py", "tools/t.py", "README.md"}, PROJECT
    )
    assert wanted == {"hf_arch/api.py", "hf_arch/py.typed", "hf_arch/recipes/a/b.yaml"}


def test_the_sdist_builds_itself():
    wanted = distribution.expected_sdist(distribution.tracked_files(), PROJECT)
    assert {"pyproject.toml", "hf_arch/__init__.py", "recipes/quickstart/quickstart.yaml", "LICENSE"} <= wanted
    assert not {name for name in wanted if name.startswith((".github/", ".ci/"))}


def test_no_file_of_the_repository_is_too_large_for_a_release():
    tracked = distribution.tracked_files()
    wanted = distribution.expected_wheel(tracked, PROJECT) | distribution.expected_sdist(tracked, PROJECT)
    files = [distribution.ROOT / name for name in wanted & tracked]
    assert not [str(file) for file in files if file.stat().st_size > distribution.LARGEST]
    assert not {name for name in wanted if name.startswith("docs/atlas/")} and "docs/atlas.md" in wanted


def test_problems_of_real_archives(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a-1-py3-none-any.whl", "w") as archive:
        for name in ("hf_arch/api.py", "tests/test_api.py", "hf_arch/large.bin", "a-1.dist-info/METADATA"):
            archive.writestr(name, "x" * (distribution.LARGEST + 1 if "large" in name else 1))
    sizes = distribution.wheel_sizes(tmp_path / "a-1-py3-none-any.whl")
    assert distribution.problems("wheel", sizes, {"hf_arch/api.py", "hf_arch/large.bin", "hf_arch/cost.py"}) == [
        "wheel: hf_arch/cost.py is missing",
        "wheel: tests/test_api.py does not belong there",
        f"wheel: hf_arch/large.bin has {distribution.LARGEST + 1:,} bytes",
    ]
    with tarfile.open(tmp_path / "a-1.tar.gz", "w:gz") as archive:
        for name in ("a-1/PKG-INFO", "a-1/.env"):
            entry = tarfile.TarInfo(name)
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))
    assert distribution.problems("sdist", distribution.sdist_sizes(tmp_path / "a-1.tar.gz"), set()) == [
        "sdist: .env does not belong there"
    ]


def test_one_of_each_is_needed(tmp_path: Path):
    assert distribution.check(tmp_path) == [f"{tmp_path}: holds 0 wheels and 0 sdists; one of each is needed"]
