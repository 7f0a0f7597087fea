"""The MAD tasks (Poli et al. 2024, "Mechanistic Design and Scaling of Hybrid Architectures"), at its parameters.

In-context, fuzzy and noisy recall, compression and memorisation; the sixth, selective copying, is in `copying`.
Recall is multi-query: every key that has been seen before asks for its value. As published, recall is learned from
every next token and scored on the answers alone (`targets`); the twins for two cores learn from the answers alone. Rows
are exactly T long, where the published generators leave the last token off.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from hf_arch.data.probes.probe import IGNORE, Probe, ProbeData, ProbeSetting, draw_distinct, require, to_data, vary
from hf_arch.data.probes.sources import MAD_SOURCE

Targets = Literal["answers", "all"]

_FEWER = (6_400, 3_200, 1_600, 800)


def in_context_recall(
    rng: np.random.Generator,
    examples: int,
    *,
    vocab_size: int = 16,
    sequence_length: int = 128,
    noise_vocab_size: int = 0,
    noise: float = 0.0,
    targets: Targets = "answers",
) -> ProbeData:
    """Rows of pairs `key value`, drawn anew in each row; with `noise`, that share of pairs is two noise tokens instead.

    The vocabulary is keys, values, noise tokens, in this order. The last pair repeats a key of the row.
    """
    letters = vocab_size - noise_vocab_size
    num_keys, num_values = letters // 2, letters - letters // 2
    require(num_keys >= 1, "recall.vocab_size", vocab_size, f"at least {noise_vocab_size + 2}")
    require(
        sequence_length % 2 == 0 and sequence_length >= 4, "recall.sequence_length", sequence_length, "even, from 4"
    )
    require(0 <= noise < 1, "recall.noise", noise, "from 0, below 1")
    require(noise == 0 or noise_vocab_size > 0, "recall.noise_vocab_size", noise_vocab_size, "above 0 where noise is")

    pairs = sequence_length // 2
    rows = np.arange(examples)
    value_of = num_keys + rng.integers(0, num_values, (examples, num_keys))
    keys = rng.integers(0, num_keys, (examples, pairs))
    noisy = rng.random((examples, pairs)) < noise
    noisy[rows, rng.integers(0, pairs - 1, examples)] = False  # or there might be nothing to recall
    noisy[:, -1] = False

    # First place of each key in its row: written from the back, so that the first has the last word.
    first = np.full((examples, num_keys + 1), pairs)
    shown = np.where(noisy, num_keys, keys)
    for place in range(pairs - 2, -1, -1):
        first[rows, shown[:, place]] = place
    seen = first[:, :num_keys] < pairs
    keys[:, -1] = np.argmax(rng.random(seen.shape) * seen, axis=1)

    values = np.take_along_axis(value_of, keys, axis=1)
    asked = ~noisy & (np.take_along_axis(first, keys, axis=1) < np.arange(pairs))
    if noise:
        keys, values = (
            np.where(noisy, rng.integers(letters, vocab_size, (examples, pairs)), tokens) for tokens in (keys, values)
        )
    inputs = np.stack([keys, values], axis=2).reshape(examples, sequence_length)
    labels = np.full_like(inputs, IGNORE)
    labels[:, 0::2] = np.where(asked, values, IGNORE)
    return to_data(inputs, _targets(inputs, labels, targets), vocab_size)


def _targets(inputs: np.ndarray, labels: np.ndarray, targets: Targets) -> np.ndarray:
    """The labels of the answers, or every next token of the row."""
    require(targets in ("answers", "all"), "recall.targets", targets, "answers, all")
    if targets == "answers":
        return labels
    following = np.full_like(inputs, IGNORE)
    following[:, :-1] = inputs[:, 1:]
    return following


def fuzzy_recall(
    rng: np.random.Generator,
    examples: int,
    *,
    vocab_size: int = 16,
    sequence_length: int = 128,
    motif_size: int = 3,
    full_keys: bool = False,
    targets: Targets = "answers",
) -> ProbeData:
    """Recall where keys and values are motifs of 1 to `motif_size` different tokens; `full_keys` are all the longest.

    The vocabulary is keys, values, the padding token; rows are padded on the left. Each token of a value that is asked
    for is answered at the token before it. The last pair repeats a pair of the row.
    """
    num_keys = (vocab_size - 1) // 2
    num_values = vocab_size - 1 - num_keys
    require(motif_size >= 1, "recall.motif_size", motif_size, "at least 1")
    require(num_keys >= motif_size, "recall.vocab_size", vocab_size, f"at least {2 * motif_size + 1}")
    longest, shortest_key = 2 * motif_size, motif_size if full_keys else 1
    require(sequence_length >= 2 * longest, "recall.sequence_length", sequence_length, f"at least {2 * longest}")

    # Enough pairs to fill any row; what is beyond its end is dropped.
    pairs = sequence_length // (shortest_key + 1) + 1
    shape = (examples, pairs)
    key_sizes = rng.integers(shortest_key, motif_size + 1, shape)
    key_tokens = draw_distinct(rng, examples * pairs, motif_size, num_keys).reshape(*shape, motif_size)
    value_sizes = rng.integers(1, motif_size + 1, shape)
    value_tokens = num_keys + draw_distinct(rng, examples * pairs, motif_size, num_values).reshape(*shape, motif_size)

    # A key that came before keeps the value that it had.
    digits = np.where(np.arange(motif_size) < key_sizes[..., None], key_tokens + 1, 0)
    earliest = _first_occurrence(digits @ ((num_keys + 1) ** np.arange(motif_size)))
    value_sizes = np.take_along_axis(value_sizes, earliest, axis=1)
    value_tokens = np.take_along_axis(value_tokens, earliest[..., None], axis=1)

    # Pairs that fit before the last one, which repeats one of them.
    rows = np.arange(examples)
    kept = (np.cumsum(key_sizes + value_sizes, axis=1) <= sequence_length - longest).sum(axis=1)
    repeated = rng.integers(0, kept)
    for array in (key_sizes, key_tokens, value_sizes, value_tokens, earliest):
        array[rows, kept] = array[rows, repeated]
    used = np.arange(pairs) <= kept[:, None]
    asked = used & (earliest < np.arange(pairs))

    ends = np.cumsum(np.where(used, key_sizes + value_sizes, 0), axis=1)
    starts = ends - (key_sizes + value_sizes) + (sequence_length - ends[:, -1:])
    inputs = np.full((examples, sequence_length), vocab_size - 1)
    labels = np.full_like(inputs, IGNORE)
    for place in range(motif_size):
        row, pair = np.nonzero(used & (place < key_sizes))
        inputs[row, starts[row, pair] + place] = key_tokens[row, pair, place]
        row, pair = np.nonzero(used & (place < value_sizes))
        at = starts[row, pair] + key_sizes[row, pair] + place
        inputs[row, at] = value_tokens[row, pair, place]
        labels[row, at - 1] = np.where(asked[row, pair], value_tokens[row, pair, place], IGNORE)
    return to_data(inputs, _targets(inputs, labels, targets), vocab_size)


def _first_occurrence(codes: np.ndarray) -> np.ndarray:
    """For each entry of int64 [N, P], the place of the first equal one in its row."""
    order = np.argsort(codes, axis=1, kind="stable")
    ordered = np.take_along_axis(codes, order, axis=1)
    fresh = np.ones(codes.shape, dtype=bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = np.maximum.accumulate(np.where(fresh, np.arange(codes.shape[1]), 0), axis=1)
    first = np.empty_like(order)
    np.put_along_axis(first, order, np.take_along_axis(order, group, axis=1), axis=1)
    return first


def compression(
    rng: np.random.Generator, examples: int, *, vocab_size: int = 16, sequence_length: int = 32
) -> ProbeData:
    """Random rows ended by the compression token, whose state alone has to hold the row: every token is an answer.

    A decoder reads token t from that last state and t (`from_last_state`); MAD uses a two-layer MLP.
    """
    require(vocab_size >= 2, "compression.vocab_size", vocab_size, "at least 2")
    require(sequence_length >= 2, "compression.sequence_length", sequence_length, "at least 2")
    inputs = rng.integers(0, vocab_size - 1, (examples, sequence_length))
    inputs[:, -1] = vocab_size - 1
    return to_data(inputs, inputs.copy(), vocab_size, from_last_state=True)


def memorization(
    rng: np.random.Generator,
    examples: int,
    *,
    vocab_size: int = 256,
    sequence_length: int = 32,
    map_seed: int = 12345,
) -> ProbeData:
    """Rows of `key ?` where ? asks for a value that is the same in every row: it is in the weights or nowhere.

    The map from keys to values depends on `map_seed` only, so that train and test share it.
    """
    require(vocab_size >= 3, "memorization.vocab_size", vocab_size, "at least 3")
    require(
        sequence_length % 2 == 0 and sequence_length >= 2,
        "memorization.sequence_length",
        sequence_length,
        "even, from 2",
    )
    num_keys = (vocab_size - 1) // 2
    ask = vocab_size - 1
    value_of = num_keys + np.random.default_rng(map_seed).permutation(ask - num_keys)[:num_keys]
    keys = rng.integers(0, num_keys, (examples, sequence_length // 2))
    inputs = np.full((examples, sequence_length), ask)
    inputs[:, 0::2] = keys
    labels = np.full_like(inputs, IGNORE)
    labels[:, 1::2] = value_of[keys]
    return to_data(inputs, labels, vocab_size)


_RECALL = {"vocab_size": 16, "sequence_length": 128}
_NOISY = {"vocab_size": 32, "sequence_length": 128, "noise_vocab_size": 16, "noise": 0.2}
_ALL: dict[str, Any] = {"source": MAD_SOURCE, "train_options": {"targets": "all"}}
_CPU: dict[str, Any] = {"train_examples": 6_400, "test_examples": 512}

IN_CONTEXT_RECALL = Probe(
    name="in_context_recall",
    question="Is a value found again by its key?",
    generate=in_context_recall,
    settings=vary(_RECALL, vocab_size=(32, 64, 128), sequence_length=(256, 512, 1024), fewer=_FEWER, **_ALL),
    cpu=ProbeSetting({"sequence_length": 64}, **_CPU),
)
FUZZY_RECALL = Probe(
    name="fuzzy_recall",
    question="Is a value of several tokens found again by a key of several tokens?",
    generate=fuzzy_recall,
    settings=vary(_RECALL, vocab_size=(32, 64, 128), sequence_length=(256, 512, 1024), fewer=_FEWER, **_ALL),
    cpu=ProbeSetting({"sequence_length": 64, "motif_size": 2}, **_CPU),
    test_options={"full_keys": True},
)
NOISY_RECALL = Probe(
    name="noisy_recall",
    question="Is a value found again by its key among tokens that mean nothing?",
    generate=in_context_recall,
    settings=vary(
        _NOISY, vocab_size=(48, 80, 144), noise=(0.4, 0.6, 0.8), sequence_length=(256, 512, 1024), fewer=_FEWER, **_ALL
    ),
    cpu=ProbeSetting({**_NOISY, "sequence_length": 64}, **_CPU),
)
COMPRESSION = Probe(
    name="compression",
    question="How much of a row does one state hold?",
    generate=compression,
    settings=vary(
        {"vocab_size": 16, "sequence_length": 32},
        vocab_size=(32, 64, 128),
        sequence_length=(64, 128, 256),
        fewer=_FEWER,
        source=MAD_SOURCE,
    ),
    cpu=ProbeSetting({"sequence_length": 16}, **_CPU),
)
MEMORIZATION = Probe(
    name="memorization",
    question="How many facts do the weights hold?",
    generate=memorization,
    settings=vary(
        {"vocab_size": 256, "sequence_length": 32},
        train_examples=256,
        source=MAD_SOURCE,
        vocab_size=(512, 1024, 2048, 4096, 8192),
    ),
    cpu=ProbeSetting({"vocab_size": 128}, train_examples=256, test_examples=128),
)
