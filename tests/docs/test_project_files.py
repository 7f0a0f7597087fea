"""The files that GitHub and readers of citations expect have the shape they publish, and agree with the package."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import hf_arch

ROOT = Path(__file__).parents[2]
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
SHAPES = [
    *(("vendor.github-workflows", path) for path in sorted((ROOT / ".github/workflows").glob("*.yml"))),
    *(("vendor.github-issue-forms", path) for path in FORMS),
    ("vendor.github-issue-config", ROOT / ".github/ISSUE_TEMPLATE/config.yml"),
    ("vendor.dependabot", ROOT / ".github/dependabot.yml"),
    ("vendor.citation-file-format", ROOT / "CITATION.cff"),
]
needs_schemas = pytest.mark.skipif(find_spec("check_jsonschema") is None, reason="check-jsonschema is not installed")


def check(schema: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.sampled(2)
@needs_schemas
@pytest.mark.parametrize(("schema", "path"), SHAPES, ids=lambda value: value.name if isinstance(value, Path) else "")
def test_each_has_its_published_shape(schema: str, path: Path, tmp_path: Path) -> None:
    done = check(schema, path)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / path.name
    broken.write_text(path.read_text() + "\nnot_a_key: {}\n" if schema != "vendor.github-issue-config" else "[]\n")
    assert check(schema, broken).returncode == 1  # the schema was read


def test_workflows_run_what_lies_in_the_repository() -> None:
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step in job["steps"]:
                words = step.get("run", "").split()
                if words[:1] == ["bash"]:
                    assert (ROOT / words[1]).is_file(), words


def test_the_matrix_covers_what_the_package_says_it_supports() -> None:
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["fast"]["strategy"]["matrix"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={matrix['python'][0]}"
    for constraints in matrix["constraints"]:
        assert (ROOT / constraints).is_file()


def test_every_file_names_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == citation["version"] == hf_arch.__version__
    assert project["license"] == citation["license"]
