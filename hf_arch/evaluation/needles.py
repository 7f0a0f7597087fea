"""Needles in generated text of 1,000 to 8,000 characters (after RULER, Hsieh et al. 2024, arXiv 2404.06654).

- `needle_single_*`: one fact, a number for a word, lies somewhere in plain sentences; which number was it?
- `needle_multi_*`: four such facts; the wrong answers are the numbers of the other words.
- `variable_tracking_*`: chains of assignments, `b = a`, start from numbers; what does the last variable of one chain
  hold? The wrong answers are the numbers of the other chains.

Answers are chosen among four by likelihood, so that bits per byte and margins say something of models that never answer
right. The rows are a function of this file alone; facts lie at all depths. Lengths are characters: a model whose
context is shorter than the text in its own tokens loses the beginning, and shows it.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

from datasets import Dataset, DatasetDict

from hf_arch.evaluation.local_tasks import KINDS

ROWS = 100
CHOICES = 4
PLACES = ("garden", "harbour", "village", "market", "valley", "forest", "kitchen", "tower")
ACTS = ("rested near", "looked at", "walked around", "spoke about", "waited beside", "thought of")


def needles(kind: str, characters: int, **_metadata: Any) -> DatasetDict:
    """Rows of `question` (at most `characters` long), `choices` and `gold`, split `test`.

    kind: `single`, `multi` or `variable`.
    """
    draw = random.Random(f"{kind} {characters}")
    make = {"single": _single, "multi": _multi, "variable": _variables}[kind]
    return DatasetDict({"test": Dataset.from_list([_row(draw, *make(draw), characters, row) for row in range(ROWS)])})


def _row(
    draw: random.Random, facts: list[str], asked: str, right: str, wrong: list[str], characters: int, row: int
) -> dict[str, Any]:
    """The facts, in order, among sentences; the first of them at a depth that goes evenly over the rows."""
    room = characters - len(asked) - 2 - sum(len(fact) + 1 for fact in facts)
    filler: list[str] = []
    while (used := sum(len(sentence) + 1 for sentence in filler)) < room:
        sentence = _sentence(draw)
        if used + len(sentence) + 1 > room:
            break
        filler.append(sentence)
    depth = (row + 0.5) / ROWS
    # The first fact at its depth, each further one anywhere behind the one before.
    places = [round(depth * len(filler))]
    for _ in facts[1:]:
        places.append(draw.randint(places[-1], len(filler)))
    for place, fact in sorted(zip(places, facts, strict=True), key=lambda pair: pair[0], reverse=True):
        filler.insert(place, fact)
    if len(facts) > 1:  # inserting from behind reverses facts that fell on one place: put them in order again
        at = [index for index, sentence in enumerate(filler) if sentence in facts]
        for index, fact in zip(at, facts, strict=True):
            filler[index] = fact
    choices = [right, *wrong]
    draw.shuffle(choices)
    return {"question": f"{' '.join(filler)}\n\n{asked}", "choices": choices, "gold": choices.index(right)}


def _single(draw: random.Random) -> tuple[list[str], str, str, list[str]]:
    (word,), numbers = _words(draw, 1), _numbers(draw, CHOICES)
    return [_fact(word, numbers[0])], _question(word), numbers[0], numbers[1:]


def _multi(draw: random.Random) -> tuple[list[str], str, str, list[str]]:
    words, numbers = _words(draw, CHOICES), _numbers(draw, CHOICES)
    facts = [_fact(word, number) for word, number in zip(words, numbers, strict=True)]
    asked = draw.randrange(CHOICES)
    return facts, _question(words[asked]), numbers[asked], [n for n in numbers if n != numbers[asked]]


def _variables(draw: random.Random) -> tuple[list[str], str, str, list[str]]:
    """Four chains of three assignments, their lines mixed, each chain's own in order."""
    numbers, hops = _numbers(draw, CHOICES), 3
    names = [f"{letter}{digit}" for letter in "abcdefgh" for digit in range(1, 10)]
    names = draw.sample(names, CHOICES * hops)
    chains = [names[index * hops : (index + 1) * hops] for index in range(CHOICES)]
    lines = [
        [f"Let {chain[0]} = {number}.", *(f"Let {new} = {old}." for old, new in pairwise(chain))]
        for chain, number in zip(chains, numbers, strict=True)
    ]
    order = [index for index in range(CHOICES) for _ in range(hops)]
    draw.shuffle(order)
    taken = [iter(chain) for chain in lines]
    facts = [next(taken[index]) for index in order]
    return facts, f"So the value of {chains[0][-1]} is", numbers[0], numbers[1:]


def _fact(word: str, number: str) -> str:
    return f"The secret number of the {word} is {number}."


def _question(word: str) -> str:
    return f"So the secret number of the {word} is"


def _sentence(draw: random.Random) -> str:
    who, what = _words(draw, 2)
    return f"The {who} {draw.choice(ACTS)} the {what} in the {draw.choice(PLACES)}."


def _words(draw: random.Random, count: int) -> list[str]:
    return draw.sample(list(dict.fromkeys(KINDS.split())), count)


def _numbers(draw: random.Random, count: int) -> list[str]:
    return [str(number) for number in draw.sample(range(10_000, 100_000), count)]
