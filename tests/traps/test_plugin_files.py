"""Runs of one recipe and one plugin that differ by a file which the plugin reads, or by a package that it imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.traps.test_planted import judged, provenance

Given = dict[str, Any]
PLUGINS = {"mine.py": "a" * 64}


def read(plugins: dict[str, str] = PLUGINS, **files: str) -> Given:
    return provenance(plugins=plugins, plugin_files={name.replace("_", "."): text for name, text in files.items()})


def read_by_seed(files: Any) -> Given:
    return {"results": lambda seed: read(**files(seed))["results"]}


def asks(given: Given, **options: Any) -> Given:
    """Runs of `mine` whose option of it is part of the question."""
    facts = given["results"]["provenance"]
    own = {"provenance": {**facts, "plugin_parts": {"mixer mine": "c"}}}
    question = ["model.architecture", "model.mixer"]
    config = {"model": {"mixer": {"type": "mine", **options}}, "run": {"question": question}}
    return {"results": own, "config": config}


TRAPS: dict[str, tuple[str, tuple[Given, Given]]] = {
    "another table": ("plugin files", (read(table_json="1"), read(table_json="2"))),
    "another table of another plugin": (
        "plugin files",
        (read({"a.py": "a"}, table_json="1"), read({"b.py": "b"}, table_json="2")),
    ),
    "a table edited between seeds": (
        "plugin files",
        (read_by_seed(lambda seed: {"table_json": "12"[seed > 2]}), read(table_json="1")),
    ),
    "a file that is there on one side": (
        "plugin files",
        (read(table_json="1", override_json="1"), read(table_json="1")),
    ),
    "a file that one seed lacks": (
        "plugin files",
        (read_by_seed(lambda seed: {"table_json": "1"} if seed > 1 else {}), read(table_json="1")),
    ),
    "a table edited, and an option": (
        "plugin files",
        (asks(read(table_json="1"), size=1), asks(read(table_json="2"), size=2)),
    ),
    "weights on one side alone": ("plugin files", (read(table_pt="1"), provenance(plugin_files={}))),
    "the corpus, in a part": (
        "seen rows",
        (provenance(plugins=PLUGINS, plugin_files={"table.json": "1"}, plugin_text=["table.json"]), provenance()),
    ),
    "another version of what it imports": (
        "versions",
        (provenance(plugin_packages={"einops": "0.7"}), provenance(plugin_packages={"einops": "0.8"})),
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_file_of_a_plugin_is_named(trap: str, tmp_path: Path) -> None:
    check, (first, second) = TRAPS[trap]
    comparison, verdict = judged(tmp_path, first, second)
    assert verdict.outcome == "confounded" and check in verdict.confounds, verdict.evidence
    named = [finding.sentence for finding in comparison.findings if finding.check == check]
    assert any(name in sentence for sentence in named for name in ("table.json", "table.pt", "override.json", "einops"))


HONEST: dict[str, tuple[Given, Given]] = {
    "the same table": (read(table_json="1"), read(table_json="1")),
    "a plugin with its table on one side alone": (read(table_json="1"), provenance()),
    "a table for each option": (asks(read(small_json="1"), size="small"), asks(read(large_json="2"), size="large")),
    "two tables of one name, by two paths": (
        asks(read(table_json="1"), table="a/table.json"),
        asks(read(table_json="2"), table="b/table.json"),
    ),
    "weights on both sides": (read({"a.py": "a"}, one_pt="1"), read({"b.py": "b"}, two_pt="2")),
    "a package that one side imports": (provenance(plugin_packages={"einops": "0.7"}), provenance()),
}


@pytest.mark.parametrize("what", HONEST)
def test_an_honest_pair_of_plugins_is_decided(what: str, tmp_path: Path) -> None:
    _, verdict = judged(tmp_path, *HONEST[what])
    assert verdict.outcome == "supported", verdict.evidence
