"""Reasoning inside the model, of Physics of Language Models 4.1 (Allen-Zhu 2025, arXiv 2512.17351): Depo and Mano.

Depo asks for the k-th successor of a node of one directed cycle whose edges are shown in random order: k lookups in a
row, without writing any of them down. Mano asks for the value modulo 23 of an expression in prefix notation: the tables
of the operations are facts that only the weights can hold, and they are to be composed along a tree. Models learn from
all sizes up to the largest and are scored at the largest.

The tasks and their parameters N, K and L are those of the paper. Ours are: names of one fixed number of tokens (the
paper mixes lengths), sizes for two cores, and trees whose left part has a uniformly drawn number of operations.
"""

from __future__ import annotations

import numpy as np

from hf_arch.data.probes.probe import IGNORE, Probe, ProbeData, ProbeSetting, draw_distinct, require, to_data

MODULUS = 23
_PLUS, _MINUS, _TIMES, _BEGIN, _ANSWER, _END, _LENGTH = range(MODULUS, MODULUS + 7)


def depo(
    rng: np.random.Generator,
    examples: int,
    *,
    nodes: int = 32,
    hops: int = 8,
    queries: int = 8,
    name_vocab_size: int = 50,
    name_tokens: int = 1,
    hardest: bool = False,
) -> ProbeData:
    """Rows `begin x y x y ... (query_k q answer a) ...`: every edge x -> y of a cycle of n nodes, then queries whose
    answer a is the k-th successor of q. n is drawn from 3 to `nodes`, k from 1 to `hops`; `hardest`: both are the
    largest. Rows are filled up with one token that asks nothing.

    The vocabulary is the tokens of names, `query_1` ... `query_hops`, answer, begin, filler.
    """
    require(nodes >= 3, "depo.nodes", nodes, "at least 3")
    require(hops >= 1, "depo.hops", hops, "at least 1")
    require(queries >= 1, "depo.queries", queries, "at least 1")
    require(name_tokens >= 1, "depo.name_tokens", name_tokens, "at least 1")
    require(
        name_vocab_size**name_tokens >= nodes,
        "depo.name_vocab_size",
        name_vocab_size,
        f"numbers whose power of {name_tokens} (name_tokens) is at least nodes = {nodes}",
    )
    answer, begin, filler = (name_vocab_size + hops + offset for offset in range(3))
    width, query = name_tokens, 2 + 2 * name_tokens
    length = 1 + 2 * nodes * width + queries * query
    inputs = np.full((examples, length), filler, dtype=np.int64)
    labels = np.full_like(inputs, IGNORE)
    inputs[:, 0] = begin
    codes = draw_distinct(rng, examples, nodes, name_vocab_size**width)
    digits = name_vocab_size ** np.arange(width)[::-1]
    names = codes[:, :, None] // digits % name_vocab_size  # [examples, nodes, width]; the cycle is their order
    sizes = np.full(examples, nodes) if hardest else rng.integers(3, nodes + 1, examples)
    for row, size in enumerate(sizes):
        edges = rng.permutation(size)
        shown = np.stack([names[row, edges], names[row, (edges + 1) % size]], axis=1)
        place = 1 + shown.size
        inputs[row, 1:place] = shown.reshape(-1)
        starts = rng.integers(0, size, queries)
        steps = np.full(queries, hops) if hardest else rng.integers(1, hops + 1, queries)
        for start, step in zip(starts, steps, strict=True):
            target = names[row, (start + step) % size]
            asked = place + 1 + width  # the place of `answer`
            inputs[row, place] = name_vocab_size + step - 1
            inputs[row, place + 1 : asked] = names[row, start]
            inputs[row, asked] = answer
            inputs[row, asked + 1 : asked + 1 + width] = target
            labels[row, asked : asked + width] = target
            place += query
    return to_data(inputs, labels, filler + 1)


def mano(rng: np.random.Generator, examples: int, *, operations: int = 10, hardest: bool = False) -> ProbeData:
    """Rows `begin length_l expression answer`: an expression of l operations +, -, * in prefix notation over 0 to 22,
    whose value modulo 23 is asked at `answer`. l is drawn from 1 to `operations`; `hardest`: it is the largest. Rows
    are filled up with one token that asks nothing.

    The vocabulary is the numbers, +, -, *, begin, answer, filler, `length_1` ... `length_operations`.
    """
    require(operations >= 1, "mano.operations", operations, "at least 1")
    inputs = np.full((examples, 2 * operations + 4), _END, dtype=np.int64)
    labels = np.full_like(inputs, IGNORE)
    counts = np.full(examples, operations) if hardest else rng.integers(1, operations + 1, examples)
    for row, count in enumerate(counts):
        expression: list[int] = []
        value = _write_expression(rng, int(count), expression)
        place = 2 + len(expression)
        inputs[row, : place + 1] = [_BEGIN, _LENGTH + count - 1, *expression, _ANSWER]
        labels[row, place] = value
    return to_data(inputs, labels, _LENGTH + operations)


def _write_expression(rng: np.random.Generator, operations: int, written: list[int]) -> int:
    """Appends a random expression; returns its value."""
    if operations == 0:
        written.append(int(rng.integers(MODULUS)))
        return written[-1]
    operator = _PLUS + int(rng.integers(3))
    written.append(operator)
    before = int(rng.integers(operations))
    first = _write_expression(rng, before, written)
    second = _write_expression(rng, operations - 1 - before, written)
    if operator == _PLUS:
        return (first + second) % MODULUS
    return (first - second) % MODULUS if operator == _MINUS else first * second % MODULUS


DEPO = Probe(
    name="depo",
    question="How many lookups in a row happen inside the model?",
    generate=depo,
    settings=(ProbeSetting({"nodes": 32, "hops": 8}, train_examples=100_000, test_examples=1_280),),
    cpu=ProbeSetting(
        {"nodes": 8, "hops": 2, "queries": 4, "name_vocab_size": 16}, train_examples=8_192, test_examples=512
    ),
    test_options={"hardest": True},
)
MANO = Probe(
    name="mano",
    question="Are learned tables of arithmetic composed along a tree?",
    generate=mano,
    settings=(ProbeSetting({"operations": 10}, train_examples=100_000, test_examples=1_280),),
    cpu=ProbeSetting({"operations": 3}, train_examples=16_384, test_examples=512),
    test_options={"hardest": True},
)
