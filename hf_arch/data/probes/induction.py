"""Induction heads (Olsson et al. 2022, in the form of Gu and Dao 2023).

One token is special. It stands once within a row of random tokens and once at its end, where the token that followed it
is to be answered. Learned at 256 tokens; the test is also at other lengths (`sequence_length`).
"""

from __future__ import annotations

import numpy as np

from hf_arch.data.probes.probe import IGNORE, Probe, ProbeData, ProbeSetting, require, to_data


def induction(
    rng: np.random.Generator, examples: int, *, vocab_size: int = 16, sequence_length: int = 256
) -> ProbeData:
    """Rows of the task; the special token is the last of the vocabulary."""
    require(vocab_size >= 3, "induction.vocab_size", vocab_size, "at least 3")
    require(sequence_length >= 3, "induction.sequence_length", sequence_length, "at least 3")
    special = vocab_size - 1
    inputs = rng.integers(0, special, (examples, sequence_length))
    rows = np.arange(examples)
    place = rng.integers(0, sequence_length - 2, examples)
    inputs[rows, place] = special
    inputs[:, -1] = special
    labels = np.full_like(inputs, IGNORE)
    labels[:, -1] = inputs[rows, place + 1]
    return to_data(inputs, labels, vocab_size)


INDUCTION = Probe(
    name="induction",
    question="Is a pattern seen once continued, at lengths never trained on?",
    generate=induction,
    settings=(ProbeSetting(),),
    cpu=ProbeSetting({"sequence_length": 64}, train_examples=6_400, test_examples=512),
)
