"""Selective copying (Gu and Dao 2023; MAD, Poli et al. 2024).

Tokens lie among blanks at random places; after the copy token they are to be given in order, one at each of the blanks
that end the row. A mixer whose weights depend on the position alone cannot tell the tokens from the blanks.
"""

from __future__ import annotations

import numpy as np

from hf_arch.data.probes.probe import IGNORE, Probe, ProbeData, ProbeSetting, require, to_data, vary


def selective_copying(
    rng: np.random.Generator,
    examples: int,
    *,
    vocab_size: int = 16,
    sequence_length: int = 256,
    num_tokens: int = 16,
) -> ProbeData:
    """Rows of the task: vocab_size - 2 tokens to copy, then the blank, then the copy token."""
    require(vocab_size >= 3, "selective_copying.vocab_size", vocab_size, "at least 3")
    require(num_tokens >= 1, "selective_copying.num_tokens", num_tokens, "at least 1")
    require(
        sequence_length > 2 * num_tokens,
        "selective_copying.sequence_length",
        sequence_length,
        f"at least {2 * num_tokens + 1} for {num_tokens} tokens",
    )
    blank, copy = vocab_size - 2, vocab_size - 1
    room = sequence_length - num_tokens - 1
    tokens = rng.integers(0, blank, (examples, num_tokens))
    places = np.sort(np.argsort(rng.random((examples, room)), axis=1)[:, :num_tokens], axis=1)
    inputs = np.full((examples, sequence_length), blank)
    np.put_along_axis(inputs, places, tokens, axis=1)
    inputs[:, room] = copy
    labels = np.full((examples, sequence_length), IGNORE)
    labels[:, room + 1 :] = tokens
    return to_data(inputs, labels, vocab_size)


SELECTIVE_COPYING = Probe(
    name="selective_copying",
    question="Can what matters be kept and the rest left out?",
    generate=selective_copying,
    settings=vary(
        {"vocab_size": 16, "sequence_length": 256, "num_tokens": 16},
        vocab_size=(32, 64, 128),
        sequence_length=(512, 1024),
        num_tokens=(32, 64, 96),
        fewer=(6_400, 3_200, 1_600, 800),
    ),
    cpu=ProbeSetting({"sequence_length": 64, "num_tokens": 8}, train_examples=6_400, test_examples=512),
)
