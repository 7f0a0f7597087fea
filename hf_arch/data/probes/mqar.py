"""Multi-query associative recall (Arora et al. 2023, "Zoology").

A row is key-value pairs, k1 v1 k2 v2 ..., and then each key once more, at a gap drawn with probability ~ a i^(a-1):
near the pairs mostly, far from them sometimes. Where a key comes again its value is to be answered. Keys are from the
lower half of the vocabulary, values from the upper. The places between hold token 0 (`filler: zero`, Zoology's figure
2) or random tokens, among which a key may come by chance (`filler: random`, the default of its generator). Both are
settings of their own, `zoology` and `zoology-random`: neither is the easier one for every mixer.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from hf_arch.data.probes.probe import IGNORE, Probe, ProbeData, ProbeSetting, draw_distinct, require, to_data
from hf_arch.data.probes.sources import ZOOLOGY

Filler = Literal["zero", "random"]


def mqar(
    rng: np.random.Generator,
    examples: int,
    *,
    vocab_size: int = 8192,
    sequence_length: int = 64,
    num_pairs: int = 4,
    power: float = 0.01,
    filler: Filler = "zero",
) -> ProbeData:
    """Rows of the task; `power` is a, `filler` what lies between the queries."""
    check_filler("mqar", filler)
    half = vocab_size // 2
    require(num_pairs >= 1, "mqar.num_pairs", num_pairs, "at least 1")
    require(
        sequence_length % 2 == 0 and sequence_length >= 4 * num_pairs,
        "mqar.sequence_length",
        sequence_length,
        f"even numbers from 4 * num_pairs = {4 * num_pairs}",
    )
    require(half > num_pairs, "mqar.vocab_size", vocab_size, f"at least {2 * num_pairs + 2} for {num_pairs} pairs")

    # Token 0 is no key, as in the original.
    keys = 1 + draw_distinct(rng, examples, num_pairs, half - 1)
    values = half + draw_distinct(rng, examples, num_pairs, vocab_size - half)
    context = 2 * num_pairs

    queries = context + 2 * power_law_places(rng, examples, num_pairs, (sequence_length - context) // 2, power)
    inputs = filled(rng, examples, sequence_length, vocab_size, filler)
    inputs[:, 0:context:2] = keys
    inputs[:, 1:context:2] = values
    labels = np.full((examples, sequence_length), IGNORE)
    np.put_along_axis(inputs, queries, keys, axis=1)
    np.put_along_axis(labels, queries, values, axis=1)
    return to_data(inputs, labels, vocab_size)


def power_law_places(rng: np.random.Generator, examples: int, count: int, size: int, power: float) -> np.ndarray:
    """`count` different places below `size` in each row, drawn with probability ~ power i^(power - 1), i from 1."""
    # The k largest of log p + Gumbel noise are k draws without replacement with probabilities p.
    places = np.arange(1, size + 1)
    noisy = (power - 1) * np.log(places) + rng.gumbel(size=(examples, places.size))
    order = np.argpartition(-noisy, count - 1, axis=1)[:, :count]
    return np.take_along_axis(order, np.argsort(-np.take_along_axis(noisy, order, axis=1), axis=1), axis=1)


def filled(rng: np.random.Generator, examples: int, length: int, vocab_size: int, filler: Filler) -> np.ndarray:
    """Rows of filler alone, int64 [examples, length]."""
    shape = (examples, length)
    return np.zeros(shape, dtype=np.int64) if filler == "zero" else rng.integers(0, vocab_size, shape)


def check_filler(probe: str, filler: str) -> None:
    """Raises `ConfigError` for a filler that is none."""
    require(filler in ("zero", "random"), f"{probe}.filler", filler, "zero, random")


def _published(filler: str) -> tuple[ProbeSetting, ...]:
    return tuple(
        ProbeSetting(
            {"sequence_length": length, "num_pairs": pairs, "filler": filler},
            train_examples=100_000,
            test_examples=3_000,
            source=ZOOLOGY,
            training={"per_device_train_batch_size": batch},
        )
        for length, pairs, batch in ((64, 4, 512), (128, 8, 512), (256, 16, 256), (512, 64, 128))
    )


MQAR = Probe(
    name="mqar",
    question="How many key-value pairs can be looked up at once?",
    generate=mqar,
    settings=_published("zero"),
    named={"zoology-random": _published("random")[0]},
    cpu=ProbeSetting({"vocab_size": 256}, train_examples=8_192, test_examples=512),
)
