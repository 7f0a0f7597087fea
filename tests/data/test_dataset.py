"""Rows of a token stream: the same for any shards, documents told apart, files mapped in every process."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_arch.data.dataset import MixedDataset, TokenDataset, TokenStream, document_positions

EOS = 1


def make_stream(folder: Path, tokens: np.ndarray, cuts: list[int]) -> TokenStream:
    shards = []
    for number, part in enumerate(np.split(tokens.astype("<u2"), cuts)):
        path = folder / f"{number}.bin"
        path.write_bytes(part.tobytes())
        shards.append((path, part.size))
    return TokenStream(shards, "<u2")


def make_dataset(folder: Path, tokens: np.ndarray, cuts: list[int], **options) -> TokenDataset:
    folder.mkdir(exist_ok=True)
    stream = make_stream(folder, tokens, cuts)
    return TokenDataset(stream, sequence_length=8, num_bytes=999, eos_token_id=EOS, **options)


@pytest.fixture
def tokens() -> np.ndarray:
    tokens = np.random.default_rng(0).integers(2, 60_000, size=101)
    tokens[[3, 4, 20, 47, 95]] = EOS
    return tokens


@pytest.mark.parametrize("cuts", [[], [50], [3, 3, 9, 10, 64, 101], [8, 16, 24]])
def test_rows_do_not_depend_on_the_shards(tmp_path: Path, tokens: np.ndarray, cuts: list[int]):
    dataset = make_dataset(tmp_path / "x", tokens, cuts)
    assert (len(dataset), dataset.num_tokens) == (12, 101)
    for number in range(12):
        row = dataset[number]
        assert row["input_ids"].tolist() == tokens[8 * number : 8 * number + 8].tolist()
        assert torch.equal(row["labels"], row["input_ids"])
        assert row["shift_labels"].tolist() == tokens[8 * number + 1 : 8 * number + 9].tolist()
        assert row["labels"] is not row["input_ids"]
        assert row["input_ids"].dtype == torch.int64
        assert "position_ids" not in row
    whole = make_dataset(tmp_path / "y", tokens[:96], [50])
    assert whole[11]["shift_labels"].tolist() == [*tokens[89:96].tolist(), -100]  # nothing follows the last token
    assert dataset[-1]["input_ids"].tolist() == dataset[11]["input_ids"].tolist()
    with pytest.raises(IndexError):
        dataset[12]


def test_documents_in_a_row(tmp_path: Path, tokens: np.ndarray):
    dataset = make_dataset(tmp_path / "x", tokens, [50], isolate_documents=True)
    row = dataset[0]
    assert row["position_ids"].tolist() == [0, 1, 2, 3, 0, 0, 1, 2]
    expected = tokens[:8].copy()
    expected[[0, 4, 5]] = -100
    assert row["labels"].tolist() == expected.tolist()
    assert row["shift_labels"].tolist() == [*tokens[1:4], -100, -100, *tokens[6:9]]
    # Shifted by the model, exactly the borders are masked: no document predicts the first token of the next.
    for number in range(len(dataset)):
        row = dataset[number]
        border = row["input_ids"][:-1] == EOS
        assert torch.equal(row["labels"][1:] == -100, border)
        assert torch.equal(row["shift_labels"] == -100, row["input_ids"] == EOS)
        assert torch.equal(row["position_ids"][1:] == 0, border)


def test_positions_agree_with_a_loop(tokens: np.ndarray):
    position, expected = 0, []
    for token in tokens:
        expected.append(position)
        position = 0 if token == EOS else position + 1
    assert document_positions(tokens, EOS).tolist() == expected


def test_a_pickled_dataset_holds_file_names_only(tmp_path: Path):
    dataset = make_dataset(tmp_path / "x", np.arange(2, 60_002), [30_000])
    first = dataset[0]["input_ids"]
    packed = pickle.dumps(dataset)
    assert len(packed) < 5_000
    assert torch.equal(pickle.loads(packed)[0]["input_ids"], first)


def test_worker_processes_read_the_same_rows(tmp_path: Path, tokens: np.ndarray):
    dataset = make_dataset(tmp_path / "x", tokens, [50])
    alone = torch.cat([batch["input_ids"] for batch in DataLoader(dataset, batch_size=4)])
    shared = torch.cat([batch["input_ids"] for batch in DataLoader(dataset, batch_size=4, num_workers=1)])
    assert torch.equal(alone, shared)


def test_mixed_datasets_lie_end_to_end(tmp_path: Path, tokens: np.ndarray):
    one, two = make_dataset(tmp_path / "x", tokens, []), make_dataset(tmp_path / "y", tokens[::-1].copy(), [])
    mixed = MixedDataset([one, two])
    assert (len(mixed), mixed.num_tokens, mixed.num_bytes) == (24, 202, 1998)
    assert torch.equal(mixed[13]["input_ids"], two[1]["input_ids"])
    assert mixed.bits_per_byte(1.0) == pytest.approx(202 / 1998 / np.log(2))
