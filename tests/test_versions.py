"""An unsupported transformers or torch is told in one line; what is supported is said once and the same everywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

from hf_arch.versions import SUPPORTED, installed_version, require_supported_versions

ROOT = Path(__file__).parents[1]


def faked(tmp_path: Path, package: str, version: str) -> str:
    """A folder for sys.path where `package` is installed at `version`, by its metadata alone."""
    info = tmp_path / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return str(tmp_path)


def import_with(path: str, *options: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([path, str(ROOT)])}
    command = [
        sys.executable,
        *options,
        "-c",
        "import hf_arch, sys; print(sorted({'torch', 'transformers'} & {*sys.modules}))",
    ]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("package", "version"),
    [("transformers", "5.22.4"), ("transformers", "4.57.1"), ("torch", "1.13.1"), ("torch", "2.0.0+cpu")],
)
def test_an_older_version_is_an_error_of_one_line(tmp_path: Path, package: str, version: str):
    done = import_with(faked(tmp_path, package, version))
    assert done.returncode == 1
    supported = SUPPORTED[package]
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("ImportError: hf_arch ") and f"{version} is installed" in line
    assert line.endswith(f'pip install "{package}>={supported.oldest},<{supported.below}"')


@pytest.mark.parametrize(
    ("package", "version"), [("transformers", "5.25.0"), ("transformers", "6.0.0rc1"), ("torch", "3.0")]
)
def test_a_newer_version_is_a_warning(tmp_path: Path, package: str, version: str):
    done = import_with(faked(tmp_path, package, version))
    assert (done.returncode, done.stdout.strip()) == (0, "[]")
    (said,) = [line for line in done.stderr.splitlines() if "UserWarning" in line]
    assert f"{version} is installed, which it was not tested with" in said
    assert import_with(str(tmp_path), "-W", "ignore").stderr == ""


@pytest.mark.parametrize("package", SUPPORTED)
def test_both_ends_of_the_range_are_taken_without_a_word(tmp_path: Path, package: str):
    for index, version in enumerate(
        (SUPPORTED[package].oldest, f"{SUPPORTED[package].newest}.3", f"{SUPPORTED[package].oldest}.0.dev0")
    ):
        (tmp_path / str(index)).mkdir()
        done = import_with(faked(tmp_path / str(index), package, version))
        assert (done.returncode, done.stderr) == (0, ""), (version, done.stderr)


def test_what_is_loaded_counts_before_what_is_installed(monkeypatch):
    import transformers

    monkeypatch.setattr(transformers, "__version__", "5.22.0")
    assert installed_version("transformers") == "5.22.0"
    with pytest.raises(
        ImportError, match=r"^this model works with transformers 5\.23 to .*, and 5\.22\.0 is installed"
    ):
        require_supported_versions("this model")
    monkeypatch.setattr(transformers, "__version__", "99.0")
    with pytest.raises(ImportError, match=r"99\.0 is installed: pip install"):
        require_supported_versions("this model", refuse_newer=True)
    monkeypatch.setattr(transformers, "__version__", SUPPORTED["transformers"].newest)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_supported_versions("this model", refuse_newer=True)


def test_the_project_declares_the_same_range():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    transformers, torch = SUPPORTED["transformers"], SUPPORTED["torch"]
    assert f"transformers>={transformers.oldest},<{transformers.below}" in declared
    assert f"torch>={torch.oldest}" in declared


@pytest.mark.parametrize(("file", "end"), [("constraints.txt", "oldest"), ("constraints-newest.txt", "newest")])
def test_the_environments_of_the_suites_are_the_ends_of_the_range(file: str, end: str):
    (pinned,) = re.findall(r"^transformers[>=]=([\d.]+)", (ROOT / file).read_text(), re.MULTILINE)
    assert f"{pinned}.".startswith(f"{getattr(SUPPORTED['transformers'], end)}.")
