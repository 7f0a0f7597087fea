"""Two harder forms of multi-query recall, of Zoology's published code (HazyResearch/zoology, 2025).

Compositional: a key is two tokens, and all pairs of some first and some second tokens are shown, so that neither
decides the value alone. Forgetting: after the pairs some keys come again with other values, and the last value counts.
Queries lie as in MQAR, at gaps drawn from a power law; the answer to a compound key is given at its second token.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_arch.data.probes.mqar import Filler, check_filler, filled, power_law_places
from hf_arch.data.probes.probe import IGNORE, Probe, ProbeData, ProbeSetting, draw_distinct, require, to_data
from hf_arch.data.probes.sources import ZOOLOGY


def compositional_mqar(
    rng: np.random.Generator,
    examples: int,
    *,
    vocab_size: int = 8192,
    sequence_length: int = 64,
    grid: int = 2,
    power: float = 0.01,
    filler: Filler = "random",
) -> ProbeData:
    """Rows of grid^2 triples `first second value`, then each compound key once more. The vocabulary is thirds: first
    tokens, second tokens, values."""
    check_filler("compositional_mqar", filler)
    third, pairs = vocab_size // 3, grid * grid
    require(grid >= 1, "compositional_mqar.grid", grid, "at least 1")
    require(
        sequence_length >= 6 * pairs,
        "compositional_mqar.sequence_length",
        sequence_length,
        f"at least 6 * grid^2 = {6 * pairs}",
    )
    require(third > pairs, "compositional_mqar.vocab_size", vocab_size, f"at least {3 * pairs + 3} for grid {grid}")
    shuffle = np.argsort(rng.random((examples, pairs)), axis=1)
    firsts = np.repeat(1 + draw_distinct(rng, examples, grid, third - 1), grid, axis=1)
    seconds = np.tile(third + draw_distinct(rng, examples, grid, third), (1, grid))
    firsts, seconds = (np.take_along_axis(tokens, shuffle, axis=1) for tokens in (firsts, seconds))
    values = 2 * third + draw_distinct(rng, examples, pairs, vocab_size - 2 * third)
    context = 3 * pairs
    inputs = filled(rng, examples, sequence_length, vocab_size, filler)
    for offset, tokens in enumerate((firsts, seconds, values)):
        inputs[:, offset:context:3] = tokens
    queries = context + 3 * power_law_places(rng, examples, pairs, (sequence_length - context) // 3, power)
    labels = np.full_like(inputs, IGNORE)
    np.put_along_axis(inputs, queries, firsts, axis=1)
    np.put_along_axis(inputs, queries + 1, seconds, axis=1)
    np.put_along_axis(labels, queries + 1, values, axis=1)
    return to_data(inputs, labels, vocab_size)


def forgetting_mqar(
    rng: np.random.Generator,
    examples: int,
    *,
    vocab_size: int = 8192,
    sequence_length: int = 64,
    num_pairs: int = 4,
    num_updates: int = 2,
    power: float = 0.01,
    filler: Filler = "random",
) -> ProbeData:
    """Rows of `num_pairs` pairs, then `num_updates` of their keys with another value each, then each key once more."""
    check_filler("forgetting_mqar", filler)
    half, shown = vocab_size // 2, num_pairs + num_updates
    require(num_pairs >= 1, "forgetting_mqar.num_pairs", num_pairs, "at least 1")
    require(0 <= num_updates <= num_pairs, "forgetting_mqar.num_updates", num_updates, f"0 to num_pairs = {num_pairs}")
    need = 2 * shown + 2 * num_pairs
    require(
        sequence_length % 2 == 0 and sequence_length >= need,
        "forgetting_mqar.sequence_length",
        sequence_length,
        f"even numbers from {need}",
    )
    require(half > num_pairs + 1, "forgetting_mqar.vocab_size", vocab_size, f"at least {2 * num_pairs + 4}")
    keys = 1 + draw_distinct(rng, examples, num_pairs, half - 1)
    values = draw_distinct(rng, examples, num_pairs, vocab_size - half)
    changed = draw_distinct(rng, examples, num_updates, num_pairs) if num_updates else np.empty((examples, 0), np.int64)
    # A shift by 1 to n - 1 in the ring of n values is never the old one.
    fresh = np.take_along_axis(values, changed, axis=1) + rng.integers(1, vocab_size - half, changed.shape)
    final = values.copy()
    np.put_along_axis(final, changed, fresh % (vocab_size - half), axis=1)
    context = 2 * shown
    inputs = filled(rng, examples, sequence_length, vocab_size, filler)
    inputs[:, 0:context:2] = np.concatenate([keys, np.take_along_axis(keys, changed, axis=1)], axis=1)
    inputs[:, 1:context:2] = half + np.concatenate([values, np.take_along_axis(final, changed, axis=1)], axis=1)
    queries = context + 2 * power_law_places(rng, examples, num_pairs, (sequence_length - context) // 2, power)
    labels = np.full_like(inputs, IGNORE)
    np.put_along_axis(inputs, queries, keys, axis=1)
    np.put_along_axis(labels, queries, half + final, axis=1)
    return to_data(inputs, labels, vocab_size)


_PUBLISHED: dict[str, Any] = {"train_examples": 100_000, "test_examples": 3_000, "source": ZOOLOGY}
_CPU: dict[str, Any] = {"train_examples": 8_192, "test_examples": 512}

COMPOSITIONAL_MQAR = Probe(
    name="compositional_mqar",
    question="Can a value be looked up by two tokens of which neither suffices?",
    generate=compositional_mqar,
    settings=tuple(
        ProbeSetting({"sequence_length": length, "grid": grid}, **_PUBLISHED)
        for length, grid in ((64, 2), (128, 3), (256, 4))
    ),
    cpu=ProbeSetting({"vocab_size": 192, "sequence_length": 32}, **_CPU),
)
FORGETTING_MQAR = Probe(
    name="forgetting_mqar",
    question="Is an old value replaced by a new one?",
    generate=forgetting_mqar,
    settings=tuple(
        ProbeSetting({"sequence_length": length, "num_pairs": 2 * updates, "num_updates": updates}, **_PUBLISHED)
        for length, updates in ((64, 2), (128, 4), (256, 8))
    ),
    cpu=ProbeSetting({"vocab_size": 256}, **_CPU),
)
