"""What a user can get wrong is said in one line that names the field, the value and a way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_arch.core.errors import ConfigError
from hf_arch.data import DataOptions, prepare_data
from tests.data.texts import make_text


def message(cache: Path, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare_data(DataOptions(**options), cache_dir=cache, progress=False)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"sequence_length": 0}, ["data.sequence_length: 0", "at least 2"]),
        ({"sequence_length": -5}, ["data.sequence_length: -5", "nearest: 2"]),
        ({"sequence_length": 2.5}, ["data.sequence_length: 2.5", "whole number"]),
        ({"vocab_size": 100}, ["data.vocab_size: 100", "at least 258", "nearest: 258"]),
        ({"vocab_size": 0, "tokenizer": "char"}, ["data.vocab_size: 0"]),
        ({"validation_fraction": 1.5}, ["data.validation_fraction: 1.5", "below 1"]),
        ({"max_train_tokens": 0}, ["data.max_train_tokens: 0"]),
        ({"corpus": ""}, ["data.corpus: ''"]),
        ({"isolate_documents": "yes"}, ["data.isolate_documents: 'yes'", "true, false"]),
        ({"mixture": {"shakespeare": -1}}, ["data.mixture.shakespeare: -1", "above 0"]),
        ({"mixture": {}}, ["data.mixture"]),
        ({"corpus": "shakespear"}, ["data.corpus: 'shakespear'", "nearest: 'shakespeare'", "python-docs"]),
        ({"corpus": "no/such/file.txt"}, ["data.corpus: no file or folder 'no/such/file.txt'"]),
        ({"corpus": "~nobody/x.txt"}, ["data.corpus: no file or folder '~nobody/x.txt'"]),
        ({"corpus": "no/such/*.txt"}, ["data.corpus: 'no/such/*.txt' contains no readable file"]),
        ({"corpus": "c4"}, ["data.max_train_tokens", "'c4' is streamed"]),
    ],
)
def test_wrong_options(cache: Path, options: dict, parts: list[str]):
    text = message(cache, **options)
    for part in parts:
        assert part in text


def test_a_misspelt_file_gets_its_neighbour(text_file: Path, cache: Path):
    assert "nearest: '" + str(text_file) in message(cache, corpus=str(text_file.with_name("bok.txt")))


def test_an_unknown_extension(tmp_path: Path, cache: Path):
    (tmp_path / "text.jsonll").write_text("{}")
    text = message(cache, corpus=str(tmp_path / "text.jsonll"))
    assert "unknown extension '.jsonll'" in text
    assert "nearest: '.jsonl'" in text


@pytest.mark.parametrize("tokenizer", ["bpe", "char", "byte"])
def test_an_empty_file(tmp_path: Path, cache: Path, tokenizer: str):
    (tmp_path / "empty.txt").write_text("")
    assert "is empty" in message(cache, corpus=str(tmp_path / "empty.txt"), tokenizer=tokenizer)


def test_a_file_that_is_trained_on_and_held_out(tmp_path: Path, cache: Path):
    folder = tmp_path / "split"
    folder.mkdir()
    for name in ("train-0.txt", "validation.txt"):
        (folder / name).write_text(make_text(0, 300), encoding="utf-8")
    (folder / "train-1.txt").write_text(make_text(1, 300), encoding="utf-8")
    said = message(cache, corpus=str(folder))
    assert "validation.txt" in said and "train-0.txt" in said and "same bytes" in said
    assert not cache.exists()


def test_rows_without_text(tmp_path: Path, cache: Path):
    (tmp_path / "blank.jsonl").write_text('{"text": ""}\n{"text": ""}\n')
    assert "contains no text" in message(cache, corpus=str(tmp_path / "blank.jsonl"))


def test_an_empty_folder(tmp_path: Path, cache: Path):
    (tmp_path / "nothing").mkdir()
    assert "contains no readable file" in message(cache, corpus=str(tmp_path / "nothing"))


def test_too_little_text_says_how_little(tmp_path: Path, cache: Path):
    path = tmp_path / "short.txt"
    path.write_text("abcdefghij" * 10)
    text = message(cache, corpus=str(path), tokenizer="char", sequence_length=64)
    assert "the validation split" in text
    assert "has 11 tokens" in text
    assert "needs 64" in text
    assert "the train split" in message(cache, corpus=str(path), tokenizer="char", sequence_length=500)


def test_a_missing_column(tmp_path: Path, cache: Path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"texts": "a", "id": 1}) + "\n")
    text = message(cache, corpus=str(tmp_path / "rows.jsonl"))
    assert "data.text_column" in text
    assert "nearest: 'texts'" in text


def test_a_column_that_is_not_text(tmp_path: Path, cache: Path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": 5}) + "\n")
    assert "holds int64" in message(cache, corpus=str(tmp_path / "rows.jsonl"))


def test_rows_that_are_not_json(tmp_path: Path, cache: Path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\nnot json\n')
    assert "cannot be read as json" in message(cache, corpus=str(tmp_path / "rows.jsonl"))


def test_text_that_is_not_utf8(tmp_path: Path, cache: Path):
    (tmp_path / "latin.txt").write_bytes("caf\u00e9 ".encode("latin-1") * 50)
    assert "cannot be read as text" in message(cache, corpus=str(tmp_path / "latin.txt"))


def test_characters_that_training_never_saw(tmp_path: Path, cache: Path):
    path = tmp_path / "two.txt"
    path.write_text(make_text(0, 400) + "\u0416\u0434" * 100, encoding="utf-8")
    text = message(cache, corpus=str(path), tokenizer="char", sequence_length=8)
    assert "data.tokenizer" in text
    assert "'\u0416'" in text
    assert "'byte'" in text


def test_without_the_hub_the_way_out_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = message(cache, corpus="tinystories")
    assert "'tinystories' could not be loaded from 'roneneldan/TinyStories'" in text
    assert "python-docs" in text
