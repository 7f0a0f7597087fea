"""From text to rows: nothing lost, nothing done twice, nothing half done."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_arch.data import DataOptions, MixtureOrder, local_files, prepare, prepare_data, prepare_shards, sharding
from hf_arch.data.dataset import MixedDataset, TokenDataset, first_rows
from hf_arch.data.validation_parts import validation_part
from hf_arch.recipe.build import build_config
from hf_arch.recipe.recipe import Recipe
from tests.data.texts import make_text


def tokens_of(dataset: TokenDataset) -> list[int]:
    return dataset.stream.read(0, dataset.num_tokens).tolist()


def write_rows(path: Path, texts: list[str], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": list(range(len(texts))), column: texts}), path)
    else:
        lines = [json.dumps({"id": number, column: text}) for number, text in enumerate(texts)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_the_text_is_all_there(text_file: Path, cache: Path, kind: str):
    options = DataOptions(corpus=str(text_file), tokenizer=kind, vocab_size=300, sequence_length=16)
    data = prepare_data(options, cache_dir=cache, progress=False)
    text = text_file.read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    for dataset, expected in ((data.train, text[:cut]), (data.validation, text[cut:])):
        tokens = tokens_of(dataset)
        assert tokens[-1] == data.tokenizer.eos_token_id
        assert data.tokenizer.decode(tokens[:-1]) == expected
        assert dataset.num_bytes == len(expected.encode())
        assert dataset.num_tokens == len(tokens)
    assert data.validation.bits_per_byte(2.0) == pytest.approx(
        2.0 / math.log(2) * data.validation.num_tokens / data.validation.num_bytes
    )
    assert data.tokenizer.model_max_length == 16


def test_a_second_call_does_nothing(text_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    options = DataOptions(corpus=str(text_file), vocab_size=300, sequence_length=16)
    first = prepare_data(options, cache_dir=cache, progress=False)

    def refuse(*_, **__):
        raise AssertionError("the work was done again")

    for name in ("build_tokenizer", "write_shards"):
        monkeypatch.setattr(prepare, name, refuse)
    monkeypatch.setattr("hf_arch.data.local_files._read", refuse)
    again = prepare_data(options, cache_dir=cache, progress=False)
    assert again.fingerprint == first.fingerprint
    assert tokens_of(again.train) == tokens_of(first.train)
    with pytest.raises(AssertionError, match="done again"):
        prepare_data(DataOptions(corpus=str(text_file), vocab_size=301), cache_dir=cache, progress=False)


def test_two_caches_hold_the_same_bytes(text_file: Path, tmp_path: Path):
    options = DataOptions(corpus=str(text_file), vocab_size=300, sequence_length=16)
    one, two = (prepare_data(options, cache_dir=tmp_path / name, progress=False) for name in ("a", "b"))
    assert one.fingerprint == two.fingerprint
    assert tokens_of(one.train) == tokens_of(two.train)


def test_the_fingerprint_covers_what_decides_the_rows(text_file: Path, cache: Path):
    base = {"corpus": str(text_file), "vocab_size": 300, "sequence_length": 16}
    changes = [
        {},
        {"vocab_size": 310},
        {"tokenizer": "byte"},
        {"sequence_length": 17},
        {"isolate_documents": True},
        {"validation_fraction": 0.2},
        {"max_train_tokens": 500},
        {"max_validation_tokens": 100},
    ]
    prints = {prepare_data(DataOptions(**{**base, **c}), cache_dir=cache, progress=False).fingerprint for c in changes}
    assert len(prints) == len(changes)
    text_file.write_text(make_text(1, 3000), encoding="utf-8")
    assert prepare_data(DataOptions(**base), cache_dir=cache, progress=False).fingerprint not in prints


def test_a_damaged_cache_is_made_again(text_file: Path, cache: Path):
    options = DataOptions(corpus=str(text_file), vocab_size=300, sequence_length=16)
    expected = tokens_of(prepare_data(options, cache_dir=cache, progress=False).train)
    shard = next(cache.glob("tokens/*/train-*.bin"))
    shard.write_bytes(b"\0" * shard.stat().st_size)
    assert tokens_of(prepare_data(options, cache_dir=cache, progress=False).train) == expected
    next(cache.glob("tokens/*/meta.json")).write_text("{")
    assert tokens_of(prepare_data(options, cache_dir=cache, progress=False).train) == expected


def test_limits_cut_after_so_many_tokens(text_file: Path, cache: Path):
    base = {"corpus": str(text_file), "tokenizer": "byte", "sequence_length": 16}
    whole = prepare_data(DataOptions(**base), cache_dir=cache, progress=False)
    cut = prepare_data(
        DataOptions(**base, max_train_tokens=777, max_validation_tokens=100), cache_dir=cache, progress=False
    )
    assert tokens_of(cut.train) == tokens_of(whole.train)[:777]
    assert tokens_of(cut.validation) == tokens_of(whole.validation)[:100]
    # All but a character that the cut may have split.
    assert 777 - cut.train.num_bytes in range(-3, 4)


def test_documents_are_joined_by_the_end_of_text(tmp_path: Path, cache: Path):
    texts = [make_text(seed, 20) for seed in range(30)]
    path = write_rows(tmp_path / "rows.jsonl", texts)
    options = DataOptions(corpus=str(path), tokenizer="byte", sequence_length=16, isolate_documents=True)
    data = prepare_data(options, cache_dir=cache, progress=False)
    both = tokens_of(data.train) + tokens_of(data.validation)
    ends = [place for place, token in enumerate(both) if token == data.tokenizer.eos_token_id]
    starts = [0, *(end + 1 for end in ends[:-1])]
    assert [data.tokenizer.decode(both[s:e]) for s, e in zip(starts, ends, strict=True)] == texts
    assert tokens_of(data.train)[-1] == data.tokenizer.eos_token_id
    assert data.train.num_bytes + data.validation.num_bytes == sum(len(text.encode()) for text in texts)
    assert 0.05 <= data.validation.num_bytes / (data.train.num_bytes + data.validation.num_bytes) <= 0.2


def test_text_that_spells_the_end_of_text_is_text(tmp_path: Path, cache: Path):
    path = tmp_path / "tricky.txt"
    path.write_text("say <|endoftext|> and <|pad|> aloud. " * 40, encoding="utf-8")
    data = prepare_data(
        DataOptions(corpus=str(path), tokenizer="bpe", vocab_size=300, sequence_length=8),
        cache_dir=cache,
        progress=False,
    )
    tokens = tokens_of(data.train)
    assert tokens.count(data.tokenizer.eos_token_id) == 1
    assert data.tokenizer.pad_token_id not in tokens


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_of_a_named_column(tmp_path: Path, cache: Path, suffix: str):
    path = write_rows(tmp_path / f"rows{suffix}", [make_text(s, 20) for s in range(30)], column="story")
    options = DataOptions(corpus=str(path), tokenizer="byte", sequence_length=16, text_column="story")
    assert prepare_data(options, cache_dir=cache, progress=False).train.num_bytes > 0


def test_a_folder_with_files_of_every_kind(tmp_path: Path, cache: Path):
    folder = tmp_path / "mixed"
    write_rows(folder / "a.jsonl", [make_text(s, 20) for s in range(10)])
    write_rows(folder / "deep" / "b.parquet", [make_text(s, 20) for s in range(10, 20)])
    (folder / "c.txt").write_text(make_text(20, 20), encoding="utf-8")
    (folder / "notes.md").write_text("not read", encoding="utf-8")
    options = DataOptions(corpus=str(folder), tokenizer="byte", sequence_length=16)
    data = prepare_data(options, cache_dir=cache, progress=False)
    total = sum(len(make_text(seed, 20).encode()) for seed in range(21))
    assert data.train.num_bytes + data.validation.num_bytes == total
    globbed = DataOptions(corpus=str(folder / "*.jsonl"), tokenizer="byte", sequence_length=16)
    assert prepare_data(globbed, cache_dir=cache, progress=False).train.num_bytes < data.train.num_bytes


def test_files_named_for_validation_are_held_out(tmp_path: Path, cache: Path):
    for name, seed in (("train.txt", 0), ("val.txt", 1), ("test.txt", 2)):
        (tmp_path / "split").mkdir(exist_ok=True)
        (tmp_path / "split" / name).write_text(make_text(seed, 100), encoding="utf-8")
    options = DataOptions(corpus=str(tmp_path / "split"), tokenizer="byte", sequence_length=16)
    data = prepare_data(options, cache_dir=cache, progress=False)
    assert data.tokenizer.decode(tokens_of(data.train)[:-1]) == make_text(0, 100)
    assert data.tokenizer.decode(tokens_of(data.validation)[:-1]) == make_text(1, 100)


def test_long_documents_cut_in_pieces_give_the_tokens_of_the_whole(tmp_path: Path, cache: Path):
    path = tmp_path / "long.txt"
    path.write_text(make_text(3, 60_000), encoding="utf-8")
    options = DataOptions(corpus=str(path), vocab_size=300, sequence_length=16)
    data = prepare_data(options, cache_dir=cache, progress=False)
    text = path.read_text(encoding="utf-8")
    whole = data.tokenizer(text[: int(len(text) * 0.9)])["input_ids"]
    assert len(text) > 4 * (1 << 16)
    assert tokens_of(data.train) == [*whole, data.tokenizer.eos_token_id]


def test_large_vocabularies_take_wider_tokens(tmp_path: Path, text_file: Path, cache: Path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    entries = ["<eos>", *(f"w{number}" for number in range(70_000)), *sorted(set(make_text(0, 3000)))]
    backend = Tokenizer(models.BPE({entry: number for number, entry in enumerate(entries)}, []))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(tmp_path / "wide")
    options = DataOptions(corpus=str(text_file), tokenizer=str(tmp_path / "wide"), sequence_length=16)
    data = prepare_data(options, cache_dir=cache, progress=False)
    assert max(tokens_of(data.train)) > 70_000
    assert data.train.stream.dtype == np.dtype("<u4")


def test_ids_with_gaps_are_stored_and_embedded_as_they_are(tmp_path: Path, text_file: Path, cache: Path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = sorted(set(make_text(0, 3000)))
    entries = {"<eos>": 0, **{letter: 69_900 + 3 * number for number, letter in enumerate(letters)}}
    backend = Tokenizer(models.BPE(entries, []))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(tmp_path / "gaps")
    options = DataOptions(corpus=str(text_file), tokenizer=str(tmp_path / "gaps"), sequence_length=16)
    data = prepare_data(options, cache_dir=cache, progress=False)
    assert set(tokens_of(data.train)) <= set(entries.values())
    recipe = Recipe.from_dict({"model": {"architecture": "llama"}, "data": {"corpus": str(text_file)}})
    assert build_config(recipe, data.tokenizer).vocab_size == max(entries.values()) + 1


def test_the_same_bytes_read_as_text_and_as_rows_are_other_data(tmp_path: Path, cache: Path):
    rows = write_rows(tmp_path / "rows.jsonl", [make_text(n, 30) for n in range(20)])
    text = tmp_path / "rows.txt"
    text.write_bytes(rows.read_bytes())
    read = [
        prepare_data(
            DataOptions(corpus=str(path), tokenizer="byte", sequence_length=16), cache_dir=cache, progress=False
        )
        for path in (rows, text)
    ]
    assert read[0].fingerprint != read[1].fingerprint
    assert '{"text"' not in read[0].tokenizer.decode(tokens_of(read[0].train))
    assert read[1].tokenizer.decode(tokens_of(read[1].train)).startswith('{"id"')


@pytest.mark.parametrize("fresh", [False, True], ids=["this process", "another"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_other_text_under_the_same_name_and_time_is_read(tmp_path: Path, cache: Path, suffix: str, fresh: bool):
    """Archives and copies set times; `datasets`, which goes by them, gave the earlier text."""
    found = []
    for letter in "ab":
        file, text = tmp_path / f"text{suffix}", letter * 200
        file.write_text(text if suffix == ".txt" else json.dumps({"text": text}), encoding="utf-8")
        os.utime(file, (1000, 1000))
        if fresh:
            local_files._read.cache_clear()
            local_files._hash.cache_clear()
        options = DataOptions(corpus=str(file), tokenizer="byte", sequence_length=16)
        data = prepare_data(options, cache_dir=cache, progress=False)
        found.append(data.fingerprint)
        assert data.tokenizer.decode(data.train[0]["input_ids"]) == letter * 16
    assert found[0] != found[1]


def test_a_mixture_shares_one_tokenizer(tmp_path: Path, cache: Path):
    paths = [write_rows(tmp_path / f"{n}.jsonl", [make_text(s, 40) for s in range(n, n + 20)]) for n in (0, 100)]
    options = DataOptions(mixture={str(paths[0]): 3, str(paths[1]): 1}, vocab_size=300, sequence_length=16)
    data = prepare_data(options, cache_dir=cache, progress=False)
    assert isinstance(data.train, MixedDataset)
    order = data.order(0)
    assert isinstance(order, MixtureOrder)
    first = len(data.train.datasets[0])
    drawn = order.indices(0, 1024)
    assert sum(row < first for row in drawn) == 768
    assert data.train[drawn[0]]["input_ids"].shape == (16,)
    other = DataOptions(mixture={str(paths[0]): 1, str(paths[1]): 1}, vocab_size=300, sequence_length=16)
    assert prepare_data(other, cache_dir=cache, progress=False).fingerprint != data.fingerprint


@pytest.mark.rest
def test_the_first_rows_of_a_mixture_are_of_every_corpus(tmp_path: Path, cache: Path):
    """A validation loss on fewer than all rows was of the first corpus alone, its bits per byte by the bytes of all."""
    paths = [tmp_path / f"{letter}.txt" for letter in "abc"]
    for path, size in zip(paths, (40_000, 20_000, 1_000), strict=True):
        path.write_text(path.stem * size, encoding="utf-8")
    mixture = {str(path): 1 for path in paths}
    options = DataOptions(mixture=mixture, tokenizer="byte", sequence_length=16, validation_fraction=0.1)
    validation = prepare_data(options, cache_dir=cache, progress=False).validation
    letter = {number: int(validation[number]["input_ids"][0]) for number in range(len(validation))}
    every = list(Counter(letter.values()).values())
    for part in ("all", "selection", "claim"):
        rows = validation_part(validation, part)
        assert [len(each) for each in rows.parts] == list(Counter(int(row["input_ids"][0]) for row in rows).values())
        assert first_rows(rows, None) == first_rows(rows, len(rows) + 1) == list(range(len(rows)))
        last: list[int] = []
        for count in range(1, len(rows) + 1):
            chosen = first_rows(rows, count)
            assert len(chosen) == count and set(last) < set(chosen) and chosen == sorted(chosen)
            found = Counter(int(rows[row]["input_ids"][0]) for row in chosen)
            shares = [found[kind] / count for kind in dict.fromkeys(letter.values())]
            assert shares == pytest.approx([size / sum(every) for size in every], abs=1.5 / count)
            last = chosen


class TestShards:
    @pytest.fixture
    def options(self, tmp_path: Path) -> DataOptions:
        path = write_rows(tmp_path / "rows.jsonl", [make_text(seed, 30) for seed in range(60)])
        return DataOptions(corpus=str(path), tokenizer="byte", sequence_length=16)

    def test_any_number_of_shards_holds_the_same_stream(self, options: DataOptions, tmp_path: Path, cache: Path):
        streams = []
        for shards in (1, 3):
            made = prepare_shards(options, tmp_path / f"out{shards}", shards=shards, cache_dir=cache, progress=False)
            assert made.created
            assert len(list(made.folder.glob("train-*.bin"))) == shards
            assert not list(made.folder.glob(".*"))
            data = prepare_data(
                DataOptions(corpus=str(made.folder), sequence_length=16), cache_dir=cache, progress=False
            )
            streams.append(tokens_of(data.train))
        assert streams[0] == streams[1]
        assert streams[0] == tokens_of(prepare_data(options, cache_dir=cache, progress=False).train)

    def test_again_there_is_nothing_to_do(self, options: DataOptions, cache: Path, monkeypatch: pytest.MonkeyPatch):
        first = prepare_shards(options, shards=2, cache_dir=cache, progress=False)
        monkeypatch.setattr(prepare, "write_shards", None)
        again = prepare_shards(options, shards=2, cache_dir=cache, progress=False)
        assert (first.created, again.created) == (True, False)
        assert again.meta == first.meta
        # What was prepared is what a run opens.
        assert len(prepare_data(options, cache_dir=cache, progress=False).train.stream.shards) == 2

    def test_an_interrupted_preparation_goes_on(
        self, options: DataOptions, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ):
        written = []
        original = sharding.write_shard

        def stop_at_third(task, advance):
            if len(written) == 2:
                raise KeyboardInterrupt
            written.append(task.name)
            return original(task, advance)

        monkeypatch.setattr(sharding, "write_shard", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            prepare_shards(options, tmp_path / "out", shards=3, cache_dir=cache, progress=False)
        assert not (tmp_path / "out").exists()
        monkeypatch.setattr(sharding, "write_shard", original)
        next(tmp_path.glob(".out.*")).joinpath(".train-00002-of-00003.bin.killed").write_bytes(b"half")
        times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob(".out.*/*.bin")}
        assert len(times) == 2
        made = prepare_shards(options, tmp_path / "out", shards=3, cache_dir=cache, progress=False)
        assert all((made.folder / name).stat().st_mtime_ns == time for name, time in times.items())
        assert not list(tmp_path.glob(".out.*"))
        assert sorted(path.name for path in made.folder.iterdir()) == sorted(
            [
                "meta.json",
                "tokenizer",
                "validation-00000-of-00001.bin",
                *(f"train-0000{n}-of-00003.bin" for n in range(3)),
            ]
        )

    @pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
    def test_a_damaged_shard_is_named(self, options: DataOptions, tmp_path: Path, cache: Path, damage: str):
        out = tmp_path / "out"
        prepare_shards(options, out, shards=2, cache_dir=cache, progress=False)
        shard = out / "train-00001-of-00002.bin"
        content = bytearray(shard.read_bytes())
        content[5] ^= 1
        if damage == "gone":
            shard.unlink()
        else:
            shard.write_bytes(content if damage == "changed" else content[:-2])
        for call in (
            lambda: prepare_shards(options, out, shards=2, cache_dir=cache, progress=False),
            lambda: prepare_data(DataOptions(corpus=str(out), sequence_length=16), cache_dir=cache, progress=False),
        ):
            with pytest.raises(ValueError, match=r"^data\.corpus: shard '.*train-00001-of-00002\.bin'[^\n]*again$"):
                call()

    @pytest.mark.rest
    def test_worker_processes_write_the_same_bytes(self, options: DataOptions, tmp_path: Path, cache: Path, capfd):
        alone = prepare_shards(options, tmp_path / "one", shards=2, cache_dir=cache, progress=False)
        shared = prepare_shards(options, tmp_path / "two", shards=2, workers=2, cache_dir=cache, progress=True)
        assert alone.meta == shared.meta
        printed = capfd.readouterr()
        assert printed.out == ""
        assert "tokens" in printed.err

    def test_a_folder_in_use_is_left_alone(self, options: DataOptions, tmp_path: Path, cache: Path):
        out = tmp_path / "out"
        out.mkdir()
        (out / "thesis.tex").write_text("keep me")
        with pytest.raises(ValueError, match="is not empty"):
            prepare_shards(options, out, cache_dir=cache, progress=False)
        made = prepare_shards(options, tmp_path / "mine", cache_dir=cache, progress=False)
        other = DataOptions(**{**vars(options), "tokenizer": "char"})
        with pytest.raises(ValueError, match="holds other data"):
            prepare_shards(other, made.folder, cache_dir=cache, progress=False)
        with pytest.raises(ValueError, match="holds 1 already, not 2"):
            prepare_shards(options, made.folder, shards=2, cache_dir=cache, progress=False)

    def test_a_prepared_folder_refuses_what_it_cannot_follow(self, options: DataOptions, tmp_path: Path, cache: Path):
        out = prepare_shards(options, tmp_path / "out", cache_dir=cache, progress=False).folder
        with pytest.raises(ValueError, match=r"data\.tokenizer: .* with 'byte', not 'char'"):
            prepare_data(DataOptions(corpus=str(out), tokenizer="char"), cache_dir=cache)
        with pytest.raises(ValueError, match="tokenised already"):
            prepare_data(DataOptions(mixture={str(out): 1.0}), cache_dir=cache)
        with pytest.raises(ValueError, match=r"data\.max_train_tokens"):
            prepare_data(DataOptions(corpus=str(out), max_train_tokens=5), cache_dir=cache)


def _prepare_and_hash(arguments: tuple[DataOptions, Path]) -> tuple[str, int]:
    data = prepare_data(arguments[0], cache_dir=arguments[1], progress=False)
    return data.fingerprint, sum(tokens_of(data.train))


@pytest.mark.slow
def test_processes_at_once_prepare_once(text_file: Path, cache: Path):
    options = DataOptions(corpus=str(text_file), vocab_size=300, sequence_length=16)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(_prepare_and_hash, [(options, cache)] * 3))) == 1
    assert len(list(cache.glob("tokens/*"))) == 1
