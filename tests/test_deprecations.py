"""A renamed key works under its old name wherever it is read, with one warning line; nothing is kept for too long."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from transformers import AutoConfig

import hf_arch
from hf_arch import deprecations
from hf_arch.core import warn
from hf_arch.core.errors import ConfigError
from hf_arch.deprecations import Renamed, overdue
from hf_arch.recipe.recipe import Recipe
from tools.deprecations_page import page

ENTRIES = (
    Renamed("model", "width", "hidden_size", "0.1"),
    Renamed("model", "key_ratio", "expand_k", "0.1"),
    Renamed("mixer gla", "key_ratio", "expand_k", "0.1"),
    Renamed("data", "length", "sequence_length", "0.1"),
    Renamed("training", "steps", "max_steps", "0.1"),
    Renamed("evaluation", "rows", "sequences", "0.1"),
    Renamed("experiment", "why", "hypothesis", "0.1"),
    Renamed("experiment.match", "by_what", "by", "0.1"),
)
OLD = {
    "model": {"architecture": "gla", "width": 64, "key_ratio": 1.0},
    "data": {"length": 32},
    "training": {"steps": 3},
    "evaluation": {"rows": 4},
    "experiment": {"why": "because", "match": {"by_what": "flops"}},
}
NEW = {
    "model": {"architecture": "gla", "hidden_size": 64, "expand_k": 1.0},
    "data": {"sequence_length": 32},
    "training": {"max_steps": 3},
    "evaluation": {"sequences": 4},
    "experiment": {"hypothesis": "because", "match": {"by": "flops"}},
}


@pytest.fixture(autouse=True)
def renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecations, "RENAMED", ENTRIES)
    monkeypatch.setattr(warn, "_given", set())


def test_a_recipe_with_old_names_is_the_one_with_new_names(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hf_arch"):
        old, new = Recipe.from_dict(OLD), Recipe.from_dict(NEW)
        assert old == new and old.to_dict() == new.to_dict() and old.stable_hash() == new.stable_hash()
        Recipe.from_dict(OLD)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 7  # one for each old name, however often it is read
    assert (
        "warning: training.steps: renamed to 'max_steps' in version 0.1; the old name works until version 0.3" in lines
    )


def test_a_config_takes_old_names_from_python_and_from_files(tmp_path: Path) -> None:
    config = hf_arch.config_from_dict({"architecture": "gla", "width": 64, "num_attention_heads": 4, "key_ratio": 1.0})
    assert (config.hidden_size, config.mixer["expand_k"]) == (64, 1.0)
    assert hf_arch.tiny_config("gla", width=128).hidden_size == 128
    config.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "width" not in text
    (tmp_path / "config.json").write_text(text.replace('"hidden_size"', '"width"').replace('"expand_k"', '"key_ratio"'))
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == AutoConfig.from_pretrained(tmp_path).to_dict()
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert (loaded.hidden_size, loaded.mixer["expand_k"]) == (64, 1.0)
    assert not hasattr(loaded, "width")


@pytest.mark.parametrize("section", ["model", "data", "training", "evaluation", "experiment"])
def test_both_names_are_refused(section: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{section}\.\w+: was renamed to '\w+', which is given too") as caught:
        Recipe.from_dict({"model": {"architecture": "gla"}, section: {**OLD[section], **NEW[section]}})
    assert "\n" not in str(caught.value)


def test_a_config_refuses_two_values_for_one_field() -> None:
    with pytest.raises(Exception, match="hidden_size: 64, and 128 under its old name"):
        AutoConfig.for_model("hfa_gla", hidden_size=64, width=128)


def test_an_old_name_goes_after_two_minor_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert overdue("0.2.5", ENTRIES) == []
    assert overdue("0.3.0.dev0", ENTRIES) == list(ENTRIES) == overdue("1.0.0", ENTRIES)
    monkeypatch.undo()
    assert overdue(hf_arch.__version__) == [], "remove them: their time is over"


def test_the_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    written = (Path(__file__).parents[1] / "docs/deprecations.md").read_text()
    assert written == page(), "run: python -m tools.deprecations_page > docs/deprecations.md"
