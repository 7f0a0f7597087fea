"""Brevo of Physics of Language Models 4.1 (Allen-Zhu 2025, arXiv 2512.17351): all that a node depends on, in order.

A directed graph without cycles is shown as edges in random order; asked is every node that the query depends on,
directly or not, each after those that it depends on itself. To name the first one, the whole part of the graph below
the query must have been walked, without writing any of it down: the breadth of reasoning inside the model.

The task is the paper's. Ours are the sizes, the way graphs are drawn, and the order: the paper takes any topological
order, which one label a position cannot say, so that here, of the nodes that could come next, the one with the smallest
token does. That rule is learned along with the task, and no number of the paper can be compared with one of here.
"""

from __future__ import annotations

import heapq

import numpy as np

from hf_arch.data.probes.probe import IGNORE, Probe, ProbeData, ProbeSetting, draw_distinct, require, to_data


def brevo(
    rng: np.random.Generator,
    examples: int,
    *,
    nodes: int = 24,
    dependencies: int = 3,
    name_vocab_size: int = 50,
    hardest: bool = False,
) -> ProbeData:
    """Rows `begin x y x y ... query q answer a ... a end`: every edge says that y depends on x; then what q depends on.

    n is drawn from 3 to `nodes` (`hardest`: it is the largest). The nodes have a random order, in which each but the
    first depends on 1 to `dependencies` earlier ones; q is any node but the first (`hardest`: the one that depends on
    the most). Rows are filled up with one token that asks nothing.

    The vocabulary is the names, query, answer, end, begin, filler.
    """
    require(nodes >= 3, "brevo.nodes", nodes, "at least 3")
    require(dependencies >= 1, "brevo.dependencies", dependencies, "at least 1")
    require(name_vocab_size >= nodes, "brevo.name_vocab_size", name_vocab_size, f"numbers of at least nodes = {nodes}")
    query, answer, end, begin, filler = range(name_vocab_size, name_vocab_size + 5)
    edges = sum(min(node, dependencies) for node in range(nodes))
    inputs = np.full((examples, 2 * edges + nodes + 4), filler, dtype=np.int64)
    labels = np.full_like(inputs, IGNORE)
    names = draw_distinct(rng, examples, nodes, name_vocab_size)
    sizes = np.full(examples, nodes) if hardest else rng.integers(3, nodes + 1, examples)
    for row, size in enumerate(sizes.tolist()):
        needs = [
            rng.choice(node, rng.integers(1, min(node, dependencies) + 1), replace=False).tolist() if node else []
            for node in range(size)
        ]
        below: list[set[int]] = []
        for own in needs:
            below.append(set(own).union(*(below[node] for node in own)))
        asked = max(range(size), key=lambda node: len(below[node])) if hardest else int(rng.integers(1, size))
        shown = rng.permutation([(names[row, x], names[row, node]) for node in range(size) for x in needs[node]])
        answers = _in_order(below[asked], needs, names[row])
        written = [begin, *shown.reshape(-1).tolist(), query, names[row, asked], answer, *answers, end]
        inputs[row, : len(written)] = written
        labels[row, len(written) - len(answers) - 2 : len(written) - 1] = [*answers, end]
    return to_data(inputs, labels, filler + 1)


def _in_order(chosen: set[int], needs: list[list[int]], names: np.ndarray) -> list[int]:
    """Names of the chosen nodes, each after those it needs; of those that could come next, the smallest name."""
    missing = {node: len(needs[node]) for node in chosen}
    ready = [(int(names[node]), node) for node in chosen if not missing[node]]
    heapq.heapify(ready)
    found = []
    while ready:
        name, node = heapq.heappop(ready)
        found.append(name)
        for other in chosen:
            if node in needs[other]:
                missing[other] -= 1
                if not missing[other]:
                    heapq.heappush(ready, (int(names[other]), other))
    return found


BREVO = Probe(
    name="brevo",
    question="How broad a graph is walked inside the model?",
    generate=brevo,
    settings=(ProbeSetting({"nodes": 24, "dependencies": 3}, train_examples=100_000, test_examples=1_280),),
    cpu=ProbeSetting({"nodes": 6, "dependencies": 2, "name_vocab_size": 16}, train_examples=16_384, test_examples=512),
    test_options={"hardest": True},
)
