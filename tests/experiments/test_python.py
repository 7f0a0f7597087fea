"""`hf_arch.experiments` from a notebook: short to look at, and a mistake is one line."""

from pathlib import Path
from typing import Any

import pytest

import hf_arch
from hf_arch import experiments
from hf_arch.core.errors import ConfigError
from tests.experiments.synthetic import write_suite


def test_a_comparison_is_one_line_in_a_notebook_and_a_page_when_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = experiments.load(write_suite(tmp_path / "suite"))
    assert repr(comparison) == f"<Comparison of 13 runs, 4 groups: {comparison.headline}>"
    experiments.show(comparison)
    shown = capsys.readouterr().out
    experiments.show(tmp_path / "suite")
    assert "Audit" in shown and capsys.readouterr().out == shown
    assert str(comparison.verdicts[0]).startswith(f"{comparison.verdicts[0].claim}: {comparison.verdicts[0].outcome} (")


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (None, {}, "recipe: expected a YAML file, its name or a mapping, got NoneType"),
        ([], {}, "recipe: expected a YAML file, its name or a mapping, got list"),
        ("quickstart", {"overrides": "training.max_steps=3"}, r"overrides: expected a list of texts, got the text"),
        ({}, {}, "model.architecture: is missing"),
    ],
)
def test_a_mistake_is_one_line(recipe: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        experiments.run(recipe, tmp_path / "results", **options)
    assert not (tmp_path / "results").exists()


def test_a_name_in_place_of_a_config() -> None:
    with pytest.raises(ConfigError, match="config: expected a config, got 'gla'"):
        hf_arch.cost("gla", 64)  # type: ignore[arg-type]
