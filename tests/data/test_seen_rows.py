"""How much of the held-out part was trained on: of text, and of rows of probes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from hf_arch.data import prepare_data
from hf_arch.data.options import DataOptions
from hf_arch.data.probes import PROBES
from hf_arch.data.seen_rows import seen_rows, seen_text, text_fingerprint


def words(seed: int, lines: int) -> str:
    draw = random.Random(seed)
    return "".join(" ".join(str(draw.randrange(10**6)) for _ in range(8)) + "\n" for _ in range(lines))


def shares(folder: Path, train: str, held_out: str, monkeypatch: pytest.MonkeyPatch, chunk: int) -> dict[str, float]:
    monkeypatch.setattr("hf_arch.data.seen_rows._CHUNK", chunk)
    (folder / "train.txt").write_text(train)
    (folder / "validation.txt").write_text(held_out)
    options = DataOptions(corpus=str(folder), tokenizer="char", sequence_length=32)
    data = prepare_data(options, cache_dir=folder / "cache", progress=False)
    return seen_text(data.train, data.validation)


@pytest.mark.parametrize("chunk", [4_000_000, 1_000])
def test_held_out_text_that_was_trained_on_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    new, old = words(1, 100), words(2, 300)
    for name, train, held_out, seen, repeated in (
        ("new", old, new, 0.0, 0.0),
        ("all", new + old, new, 1.0, 0.0),
        ("half", new[: len(new) // 2] + old, new, 0.5, 0.0),
        ("twice", new + new, new, 1.0, 1.0),
    ):
        folder = tmp_path / name
        folder.mkdir()
        found = shares(folder, train, held_out, monkeypatch, chunk)
        assert found == {"seen_share": pytest.approx(seen, abs=0.1), "repeated_share": pytest.approx(repeated, abs=0.1)}


def test_texts_are_searched_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path / "kept"))
    file, searched = tmp_path / "text.txt", []
    monkeypatch.setattr("hf_arch.data.seen_rows._found", lambda *given: searched.append(given) or set())
    file.write_text(words(1, 300))
    options = [DataOptions(corpus=str(file), tokenizer="char", sequence_length=length) for length in (32, 64)]
    texts = [prepare_data(one, cache_dir=tmp_path / "cache", progress=False) for one in options]
    found = [seen_text(data.train, data.validation) for data in (*texts, *texts)]
    assert found == [found[0]] * 4 and found[0] and len(searched) == 1
    assert seen_text(texts[0].validation, texts[0].train) and len(searched) == 2  # other texts
    shard = texts[0].train.stream.shards[0][0]  # type: ignore[union-attr]
    shard.write_bytes(shard.read_bytes())
    assert seen_text(texts[0].train, texts[0].validation) == found[0] and len(searched) == 3
    monkeypatch.setattr("hf_arch.data.seen_rows.WINDOW_BYTES", 100)
    assert seen_text(texts[0].train, texts[0].validation) == found[0] and len(searched) == 4


def test_the_fingerprint_is_of_the_tokens(tmp_path: Path) -> None:
    found = []
    for name, text in (("one", words(1, 100)), ("same", words(1, 100)), ("other", words(2, 100))):
        (tmp_path / f"{name}.txt").write_text(text)
        options = DataOptions(corpus=str(tmp_path / f"{name}.txt"), tokenizer="char", sequence_length=32)
        data = prepare_data(options, cache_dir=tmp_path / "cache", progress=False)
        found.append(text_fingerprint(data.train, data.validation))
    assert found[0] == found[1] != found[2]


def test_a_probe_with_few_different_rows_has_seen_its_test() -> None:
    parity = PROBES.get("parity")
    few, many = ([parity.data(s, 1, parity.cpu, sequence_length=n) for s in ("train", "test")] for n in (6, 32))  # type: ignore[arg-type]
    assert seen_rows(few[0].inputs, few[1].inputs) > 0.9
    assert seen_rows(many[0].inputs, many[1].inputs) == 0.0
    assert seen_rows(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 8, dtype=torch.int64)) == 0.0
