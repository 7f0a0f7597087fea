"""Two models on the same items: how much the items, and how much the seeds, leave open.

With x_{s,i} the score of item i under seed s, and d_{s,i} the difference of two models that share seeds and items:

- McNemar's exact test, of one seed: of the items that exactly one of the two has right, as many on either side?
- The paired bootstrap over seeds and items, the items drawn once for all seeds, since they are the same ones. Of a mean
  its variance is known without drawing, V_s(mean_i d) / S + V_i(mean_s d) / I, here with sample variances (what a
  bootstrap of few seeds leaves out), and the interval is Student's with S - 1 degrees of freedom. With one seed it has
  I - 1 of them, and speaks of these two models on other items, and of no other seed.

p values are corrected by Holm over all pairs of models and tasks of one score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_arch.analysis.stats import LEVEL, holm
from hf_arch.runs.items import read_items

if TYPE_CHECKING:
    import pandas as pd

    from hf_arch.analysis.groups import Group

SCORES = {"right": True, "bits_per_byte": False, "margin": True}
"""{score of an item: whether higher is better}."""
WORDS = {"right": "accuracy", "bits_per_byte": "bits per byte of the answer", "margin": "margin (nats)"}


@dataclass(frozen=True)
class ItemTest:
    """`first` minus `second` on the `items` items of `task` that both answered under each of `seeds`.

    mcnemar: {seed: p} for `right`, else empty. low, high: the interval at 95 %; p_value, p_adjusted: of the difference.
    """

    task: str
    score: str
    first: str
    second: str
    seeds: tuple[int, ...]
    items: int
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    mcnemar: dict[int, float]
    p_adjusted: float | None = None
    family: int = 1

    @property
    def verdict(self) -> str:
        """`better` or `worse` (of `first`), or `undecided`, after Holm."""
        p = self.p_value if self.p_adjusted is None else self.p_adjusted
        if p is None or p > 1 - LEVEL:
            return "undecided"
        return "better" if (self.difference > 0) == SCORES[self.score] else "worse"

    @property
    def words(self) -> str:
        """`llama better than gla on piqa: accuracy +0.031 [0.010, 0.052] over 500 items, 3 seeds`."""
        interval = "" if self.low is None or self.high is None else f" [{self.low:+.3g}, {self.high:+.3g}]"
        seeds = f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else "one seed (these two models only)"
        what = f"{WORDS[self.score]} {self.difference:+.3g}{interval} over {self.items} items, {seeds}"
        if self.verdict == "undecided":
            return f"{self.first} against {self.second} on {self.task}: undecided, {what}"
        return f"{self.first} {self.verdict} than {self.second} on {self.task}: {what}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "verdict": self.verdict, "words": self.words}


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test over two arrays of 0 and 1 on the same items, [I] each."""
    only_first, only_second = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    if only_first + only_second == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def error_over_seeds_and_items(differences: np.ndarray) -> np.ndarray:
    """Standard error [...] of the mean of differences [..., S, I], by seed and item (see the head of this file)."""
    seeds, items = differences.shape[-2:]
    variance = np.zeros(differences.shape[:-2])
    if items > 1:
        variance = variance + differences.mean(axis=-2).var(axis=-1, ddof=1) / items
    if seeds > 1:
        variance = variance + differences.mean(axis=-1).var(axis=-1, ddof=1) / seeds
    return np.sqrt(variance)


def degrees_of_freedom(seeds: int, items: int) -> int:
    """Of Student's law for that error: by the seeds, with one of them by the items."""
    return seeds - 1 if seeds > 1 else max(items - 1, 1)


def seeds_and_items(differences: np.ndarray) -> tuple[float, float | None, float | None, float | None]:
    """(mean, low, high, two-sided p) of differences [S, I]; None where there is no spread to judge by."""
    from scipy.stats import t

    mean, error = float(differences.mean()), float(error_over_seeds_and_items(differences))
    if error <= 1e-12 * max(1.0, abs(mean)):
        return mean, None, None, 1.0 if mean == 0 else None
    law = t(degrees_of_freedom(*differences.shape))
    margin = float(law.ppf(0.5 + LEVEL / 2)) * error
    return mean, mean - margin, mean + margin, 2 * float(law.sf(abs(mean) / error))


def item_test(
    task: str, score: str, first: str, second: str, ours: Mapping[int, pd.DataFrame], theirs: Mapping[int, pd.DataFrame]
) -> ItemTest | None:
    """The test of two groups, given as {seed: items}; None without a shared seed or shared items."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    tables = [group[seed].set_index("item")[score].dropna() for group in (ours, theirs) for seed in seeds]
    tables = [table[~table.index.duplicated()] for table in tables]
    common = tables[0].index
    for table in tables[1:]:
        common = common.intersection(table.index)
    if not len(common):
        return None
    values = np.stack([table.loc[common].to_numpy(dtype=np.float64) for table in tables])
    mine, other = values[: len(seeds)], values[len(seeds) :]
    mean, low, high, p = seeds_and_items(mine - other)
    exact = {seed: mcnemar(a, b) for seed, a, b in zip(seeds, mine, other, strict=True)} if score == "right" else {}
    if len(seeds) == 1 and exact:
        p = exact[seeds[0]]
    return ItemTest(task, score, first, second, tuple(seeds), len(common), mean, low, high, p, exact)


def item_tests(groups: Sequence[Group]) -> list[ItemTest]:
    """Every pair of groups on every task whose items both kept; Holm over the tests of one score."""
    tasks = sorted({task for group in groups for run in group.counted for task in run.item_tasks})
    found: list[ItemTest] = []
    for task in tasks:
        kept = {
            group.name: {
                run.seed or 0: table
                for run in group.counted
                if task in run.item_tasks and (table := read_items(run.path, task)) is not None
            }
            for group in groups
        }
        for (first, ours), (second, theirs) in combinations(kept.items(), 2):
            tests = (item_test(task, score, first, second, ours, theirs) for score in SCORES)
            found += [test for test in tests if test is not None]
    return [test for score in SCORES for test in _corrected([test for test in found if test.score == score])]


def _corrected(tests: list[ItemTest]) -> list[ItemTest]:
    adjusted = holm([1.0 if test.p_value is None else test.p_value for test in tests])
    return [replace(test, p_adjusted=p, family=len(tests)) for test, p in zip(tests, adjusted, strict=True)]
