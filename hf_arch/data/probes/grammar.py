"""Lano of Physics of Language Models 4.1 (Allen-Zhu 2025, arXiv 2512.17351): sentences of a context-free grammar.

A grammar of several levels writes long sentences in very few words, in which what may come next follows from how the
whole beginning is parsed. Models learn from every next token; no sentence says its structure.

The task is the paper's, and so are the levels, with rules of two or three symbols, equally likely. Ours are the
grammars, drawn from a number (the paper's are tables of its authors), and the score: the paper measures whether
generated sentences are in the language and how far the next-token distribution is from the true one; here the answers
are those tokens that the beginning of a sentence leaves no choice about. No number of the paper is to be compared.
"""

from __future__ import annotations

from itertools import product
from typing import Literal

import numpy as np

from hf_arch.data.probes.probe import IGNORE, Probe, ProbeData, ProbeSetting, require, to_data

Stacks = frozenset[tuple[int, ...]]
"""Ways to read a beginning: for each, the symbols that are still to be written."""


class Grammar:
    """A grammar of `levels` levels below its root, each with the same number of `symbols` and `rules` for each of them.

    Symbols are numbers: below `symbols` the words, then level by level up to the root. No two symbols share a rule.
    """

    def __init__(self, levels: int, symbols: int, rules: int, seed: int) -> None:
        rng = np.random.default_rng([seed, levels, symbols, rules])
        self.end, self.root = symbols, levels * symbols
        forms = [form for length in (2, 3) for form in product(range(symbols), repeat=length)]
        self.rules: dict[int, list[tuple[int, ...]]] = {}
        for level in range(1, levels + 1):
            above = symbols if level < levels else 1
            drawn = rng.choice(len(forms), above * rules, replace=False).reshape(above, rules)
            for symbol, own in enumerate(drawn.tolist()):
                lower = (level - 1) * symbols
                self.rules[level * symbols + symbol] = [tuple(lower + part for part in forms[form]) for form in own]
        self.start: Stacks = frozenset({(self.root,)})
        self._first: dict[int, list[tuple[int, tuple[int, ...]]]] = {word: [(word, ())] for word in range(symbols)}
        for symbol in sorted(self.rules):
            self._first[symbol] = [
                (word, tail + rule[1:]) for rule in self.rules[symbol] for word, tail in self._first[rule[0]]
            ]
        self._known: dict[Stacks, dict[int, Stacks]] = {}

    def sentence(self, rng: np.random.Generator) -> list[int]:
        """A random sentence, its rules equally likely, without the end."""
        found, stack = [], [self.root]
        while stack:
            symbol = stack.pop()
            if symbol in self.rules:
                own = self.rules[symbol]
                stack.extend(reversed(own[rng.integers(len(own))]))
            else:
                found.append(symbol)
        return found

    def following(self, stacks: Stacks) -> dict[int, Stacks]:
        """{every token that may come next: the ways to read what then stands there}; after the end a new sentence."""
        known = self._known.get(stacks)
        if known is None:
            found: dict[int, set[tuple[int, ...]]] = {}
            for stack in stacks:
                if not stack:
                    found[self.end] = {(self.root,)}
                    continue
                for word, tail in self._first[stack[0]]:
                    found.setdefault(word, set()).add(tail + stack[1:])
            known = self._known[stacks] = {token: frozenset(ways) for token, ways in found.items()}
        return known


def lano(
    rng: np.random.Generator,
    examples: int,
    *,
    levels: int = 4,
    symbols: int = 3,
    rules: int = 2,
    sequence_length: int = 256,
    grammar: int = 0,
    targets: Literal["answers", "next"] = "answers",
) -> ProbeData:
    """Rows `end sentence end sentence ...`, cut at `sequence_length`.

    grammar: which one, a number. targets: `next` labels every position with the token after it, to learn from;
        `answers` only where the grammar leaves one token.
    The vocabulary is the words, end.
    """
    require(levels >= 1, "lano.levels", levels, "at least 1")
    require(symbols >= 2, "lano.symbols", symbols, "at least 2")
    most = (symbols**2 + symbols**3) // symbols
    require(1 <= rules <= most, "lano.rules", rules, f"1 to {most}, so that no two symbols share one")
    require(sequence_length >= 1, "lano.sequence_length", sequence_length, "at least 1")
    require(targets in ("answers", "next"), "lano.targets", targets, "answers or next")
    language = Grammar(levels, symbols, rules, grammar)
    tokens = np.empty((examples, sequence_length + 1), dtype=np.int64)
    for row in tokens:
        written: list[int] = []
        while len(written) <= sequence_length:
            written += [language.end, *language.sentence(rng)]
        row[:] = written[: sequence_length + 1]
    labels = tokens[:, 1:].copy()
    if targets == "answers":
        for read, answers in zip(tokens.tolist(), labels, strict=True):
            ways = language.start
            for place, token in enumerate(read[1:]):
                following = language.following(ways)
                if len(following) > 1:
                    answers[place] = IGNORE
                ways = following[token]
    return to_data(tokens[:, :-1], labels, symbols + 1)


LANO = Probe(
    name="lano",
    question="Is the structure of a language learned from its sentences?",
    generate=lano,
    settings=(
        ProbeSetting(
            {"levels": 4, "sequence_length": 256},
            train_examples=100_000,
            test_examples=1_280,
            train_options={"targets": "next"},
        ),
    ),
    cpu=ProbeSetting(
        {"levels": 3, "sequence_length": 64},
        train_examples=8_192,
        test_examples=512,
        train_options={"targets": "next"},
    ),
)
