"""Selective copying (Gu and Dao 2023; MAD, Poli et al. 2024).

Tokens lie among blanks; after the copy token they are to be given in order, one at each of the blanks that end the row.
A mixer whose weights depend on the position alone cannot distinguish the tokens from the blanks.

Two sources space the tokens differently, and each is a setting of its name. `gu-dao`: any places, all equally likely
(`spacing: random`). `mad`: each blank falls before one of the tokens, all equally likely, so that they lie nearly
evenly and the last one is always right before the copy token (`spacing: even`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from hf_arch.data.probes.probe import IGNORE, Probe, ProbeData, ProbeSetting, require, to_data, vary
from hf_arch.data.probes.sources import GU_DAO, MAD_SOURCE


def selective_copying(
    rng: np.random.Generator,
    examples: int,
    *,
    vocab_size: int = 16,
    sequence_length: int = 256,
    num_tokens: int = 16,
    spacing: Literal["even", "random"] = "even",
) -> ProbeData:
    """Rows of the task: vocab_size - 2 tokens to copy, then the blank, then the copy token."""
    require(spacing in ("even", "random"), "selective_copying.spacing", spacing, "even, random")
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
    if spacing == "random":
        places = np.sort(np.argsort(rng.random((examples, room)), axis=1)[:, :num_tokens], axis=1)
    else:
        before = rng.multinomial(room - num_tokens, np.full(num_tokens, 1 / num_tokens), examples)
        places = before.cumsum(axis=1) + np.arange(num_tokens)
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
        source=MAD_SOURCE,
    ),
    named={
        "gu-dao": ProbeSetting(
            {"vocab_size": 16, "sequence_length": 4096, "num_tokens": 16, "spacing": "random"},
            train_examples=100_000,
            source=GU_DAO,
            training={"max_steps": 400_000},
        ),
    },
    cpu=ProbeSetting({"sequence_length": 64, "num_tokens": 8}, train_examples=6_400, test_examples=512),
)
