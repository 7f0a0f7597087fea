"""Corpora and probes of a plugin file are found by name wherever a recipe names one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_arch.core.errors import ConfigError
from hf_arch.core.registry import CORPORA, PROBES, load_plugin
from hf_arch.data import DataOptions, prepare_shards
from hf_arch.data.hub import HUB_CORPORA, HubSource, register_hub_corpus
from hf_arch.data.probes import Probe

PLUGIN = """
from hf_arch.core.registry import CORPORA
from hf_arch.data.corpus import part_range

class Notes:
    name, attribution = "{name}", "Notes, CC0."

    def fingerprint(self):
        return "{name} 1"

    def documents(self, split, part=0, parts=1):
        texts = ["to be or not to be, that is the question\\n" * 20] * (8 if split == "train" else 2)
        yield from (texts[number] for number in part_range(len(texts), part, parts))

@CORPORA.register("{name}")
def open_notes(options, cache, *, progress=True):
    "Notes."
    return Notes()
"""
OPTIONS = {"tokenizer": "byte", "sequence_length": 32}


def write(folder: Path, name: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(PLUGIN.format(name=name))
    return path


@pytest.fixture(autouse=True)
def registries_as_they_were(monkeypatch: pytest.MonkeyPatch):
    for registry in (CORPORA, PROBES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def test_a_corpus_is_prepared_by_worker_processes_too(tmp_path: Path, cache: Path):
    load_plugin(write(tmp_path, "notes"))
    data = prepare_shards(DataOptions(corpus="notes", **OPTIONS), workers=2, cache_dir=cache, progress=False)
    assert (len(data.meta.splits["train"]), data.meta.total("train", "documents")) == (2, 8)
    assert data.meta.attribution == "Notes, CC0."


@pytest.mark.rest
def test_the_environment_names_the_plugin(tmp_path: Path):
    code = (
        "from pathlib import Path; from hf_arch.data import DataOptions; from hf_arch.data.corpora import open_corpus;"
        f"print(open_corpus('memos', DataOptions(), Path({str(tmp_path)!r})).attribution)"
    )
    env = os.environ | {"HF_ARCH_PLUGINS": str(write(tmp_path, "memos"))}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=env).strip() == "Notes, CC0."


def test_a_misspelt_name_is_told_the_plugins_corpus(tmp_path: Path, cache: Path):
    load_plugin(write(tmp_path, "diaries"))
    with pytest.raises(ConfigError, match=r"data.corpus: 'diarys' is not known; nearest: 'diaries'; allowed: c4, "):
        prepare_shards(DataOptions(corpus="diarys", **OPTIONS), cache_dir=cache, progress=False)


def test_a_taken_name_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"corpus: 'shakespeare' is registered already by hf_arch\.data\.shakespeare"):
        load_plugin(write(tmp_path, "shakespeare"))
    with pytest.raises(ConfigError, match="corpus: 'c4' is registered already"):
        register_hub_corpus("c4", HubSource("someone/c4", "Another."))
    assert HUB_CORPORA["c4"].path == "allenai/c4"
    mqar = PROBES["mqar"]
    assert PROBES.register("mqar")(mqar) is mqar  # the same value again is a reload
    with pytest.raises(
        ConfigError, match=r"probe: 'mqar' is registered already by Probe\('mqar', hf_arch.data.probes.mqar"
    ):
        PROBES.register("mqar")(Probe("mqar", "?", PROBES["parity"].generate, mqar.settings, mqar.cpu))


def test_a_misspelt_probe_is_told_the_nearest():
    with pytest.raises(ConfigError, match=r"probe.task: 'mqr' is not known; nearest: 'mqar'"):
        PROBES.get("mqr", "probe.task")
