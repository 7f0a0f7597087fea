"""The search study: of many sizes, the smallest model with a good perplexity, as a table and in words.

    score = validation perplexity / million parameters

The score is reported because it is asked for; it falls with size whatever the quality, so the recommendation goes by
the Pareto front of parameters and perplexity instead: the smallest model on it within `SLACK` of the best perplexity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_arch.analysis.comparison import Comparison
from hf_arch.core.formats import quantity

SLACK = 0.05


@dataclass(frozen=True)
class Candidate:
    """One size: its parameters (count), validation perplexity, perplexity per million parameters, and whether no
    other size is both smaller and better.
    """

    name: str
    parameters: float
    perplexity: float
    score: float
    on_front: bool


@dataclass(frozen=True)
class Study:
    """The candidates from the smallest to the largest, the recommended one, and why."""

    candidates: tuple[Candidate, ...]
    recommended: str | None
    words: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def search_study(comparison: Comparison) -> Study:
    """What the completed runs of `comparison` say about size."""
    measured = [
        (group.name, parameters, perplexity)
        for group in comparison.groups
        if (parameters := group.mean("params_total")) and (perplexity := group.mean("final_val_perplexity"))
    ]
    measured.sort(key=lambda entry: entry[1:])
    front = pareto_front([(parameters, perplexity) for _name, parameters, perplexity in measured])
    candidates = tuple(
        Candidate(name, parameters, perplexity, perplexity / (parameters / 1e6), index in front)
        for index, (name, parameters, perplexity) in enumerate(measured)
    )
    if not candidates:
        return Study((), None, "No run completed: there is nothing to recommend.")
    best = min(candidates, key=lambda entry: entry.perplexity)
    chosen = next(entry for entry in candidates if entry.on_front and entry.perplexity <= (1 + SLACK) * best.perplexity)
    return Study(candidates, chosen.name, _words(chosen, best, len(candidates)))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, loss; both lower is better) that no other point beats in both, by rising cost."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def _words(chosen: Candidate, best: Candidate, count: int) -> str:
    sentence = (
        f"Recommended: {chosen.name}, {quantity(chosen.parameters)} parameters, perplexity {chosen.perplexity:.2f}."
    )
    if chosen is best:
        return f"{sentence} It is the best of {count}, and no smaller one comes within {SLACK:.0%} of it."
    worse = chosen.perplexity / best.perplexity - 1
    return (
        f"{sentence} It is {worse:.1%} worse than the best of {count} ({best.name}, {best.perplexity:.2f}) "
        f"with {chosen.parameters / best.parameters:.0%} of its parameters."
    )
