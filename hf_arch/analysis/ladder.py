"""What a ladder shows: a law in size and tokens for each run of the set, and how far it can be trusted.

- The law L(N, D) of each (`loss_surface`), or why its points allow none.
- Extrapolation, tested: the largest size predicted from the others, against what it came to (`held_out`), also where
  the points do not determine the constants of a law.
- IsoFLOP minima: the size that is best for a compute, among the sizes of the ladder's range.
- Decision accuracy: how often a smaller size ranks a pair of runs as the largest size and budget do.
- The multiplier: with which share of B's compute A reaches B's loss, both at their best sizes, against compute; and,
  size by size, the exchange rate of losses that have all decayed (`exchange`).

Minima and multipliers have the range of every law that the points do not reject, also where the constants of a law are
not determined (`ladder_compute`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_arch.analysis.admissible import admissible_laws
from hf_arch.analysis.exchange import ExchangeRate, SeedCurves, exchange_rates
from hf_arch.analysis.held_out import HeldOut, predict_held_out
from hf_arch.analysis.ladder_compute import Frontier, Minimum, Multiplier, multipliers, shared_sizes
from hf_arch.analysis.loss_surface import LossSurface, Points, fit_surface
from hf_arch.analysis.run_names import listed
from hf_arch.analysis.scaling import Refused
from hf_arch.analysis.stats import PairedDifference, all_pairs
from hf_arch.core.formats import quantity

if TYPE_CHECKING:
    from hf_arch.analysis.groups import Group

SAME_SIZE = 1.05
"""Runs of one size of the ladder may differ in parameters by less."""
MINIMA = 4
"""Computes at which isoFLOP minima are given."""


@dataclass(frozen=True)
class Rungs:
    """One run of the set at all its sizes and budgets."""

    base: str
    groups: tuple[Group, ...]
    metric: str

    @cached_property
    def points(self) -> Points:
        """Parameters without embeddings, tokens and losses of each rung that completed."""
        return Points(
            np.asarray([float(facts(group)["parameters"]) for group in self.groups]),
            np.asarray([group.mean("tokens_seen") or 0.0 for group in self.groups]),
            tuple(np.asarray(list(group.by_seed(self.metric).values())) for group in self.groups),
        )

    @cached_property
    def untold(self) -> Refused | None:
        """Why there is no law at all; None where the tokens of every rung are recorded."""
        names = [group.name for group in self.groups if not group.mean("tokens_seen")]
        return Refused(f"the tokens of {listed(names)} are not recorded") if names else None

    @cached_property
    def flops(self) -> np.ndarray:
        """Training FLOPs of each rung, float64 [n]."""
        per_token = np.asarray([group.mean("flops_per_token") or np.nan for group in self.groups])
        return per_token * self.points.tokens

    @cached_property
    def law(self) -> LossSurface | Refused:
        """The law through all points."""
        return self.untold or fit_surface(self.points)

    @cached_property
    def held_out(self) -> HeldOut | Refused:
        """The test of its extrapolation."""
        if self.untold:
            return self.untold
        points = self.points
        largest = points.parameters == points.parameters.max()
        return predict_held_out(points.where(~largest), points.where(largest))

    @cached_property
    def frontier(self) -> Frontier | Refused:
        """The best loss at each compute, by every law that the points do not reject, or why there is none."""
        if self.untold:
            return self.untold
        if not np.isfinite(self.flops).all():
            return Refused("training FLOPs are not recorded")
        laws = admissible_laws(self.points)
        return laws if isinstance(laws, Refused) else Frontier(laws, self.flops / self.points.tokens)

    @cached_property
    def minima(self) -> list[Minimum]:
        """IsoFLOP minima at computes across the ladder."""
        if isinstance(self.frontier, Refused):
            return []
        return [self.frontier.minimum(c) for c in np.geomspace(self.flops.min(), self.flops.max(), MINIMA + 2)[1:-1]]

    @property
    def lines(self) -> list[str]:
        """The law, its test and its minima, in words."""
        test = self.held_out
        tested = f"the largest size is not predicted: {test.reason}" if isinstance(test, Refused) else test.words
        found = [f"{self.base}: {self.law.words}", f"{self.base}: {tested}"]
        if isinstance(self.frontier, Refused):
            return [*found, f"{self.base}: no best size by compute: {self.frontier.reason}"]
        best = "; ".join(minimum.words for minimum in self.minima)
        return [*found, f"{self.base}: best size, with the range of all laws that the points allow, at {best}"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        law, test = self.law, self.held_out
        return {
            "base": self.base,
            "points": [
                {"parameters": float(n), "tokens": float(d), "flops": float(c), "losses": losses.tolist()}
                for n, d, c, losses in zip(
                    self.points.parameters, self.points.tokens, self.flops, self.points.losses, strict=True
                )
            ],
            "law": None
            if isinstance(law, Refused)
            else {
                **dict(zip(("E", "A", "B", "a", "b"), (law.values[0], *law.amplitudes, *law.values[3:]), strict=True)),
                "intervals": {name: list(law.interval(index)) for name, index in (("E", 0), ("a", 3), ("b", 4))},
            },
            "reason": law.reason if isinstance(law, Refused) else None,
            "words": law.words,
            "held_out": None
            if isinstance(test, Refused)
            else {**{key: getattr(test, key) for key in HeldOut.__annotations__}, "inside": test.inside},
            "held_out_reason": test.reason if isinstance(test, Refused) else None,
            "minima": [minimum.to_dict() for minimum in self.minima],
            "minima_reason": self.frontier.reason if isinstance(self.frontier, Refused) else None,
        }


@dataclass(frozen=True)
class Ladder:
    """Every run of the set over the ladder, what smaller sizes decide, and the multipliers against the baseline."""

    rungs: tuple[Rungs, ...]
    accuracy: tuple[dict[str, float], ...]
    rates: tuple[tuple[float, ExchangeRate], ...]
    multipliers: tuple[Multiplier, ...]
    unranked: tuple[str, ...] = ()
    """Pairs that decision accuracy is not of, with the reason."""

    @cached_property
    def top(self) -> dict[str, str]:
        """{name of a group: the run of the set that it is} at the largest size and budget that any run has."""
        largest = max(rung(group) for entry in self.rungs for group in entry.groups)
        return {group.name: entry.base for entry in self.rungs for group in entry.groups if rung(group) == largest}

    def named(self, text: str) -> str | None:
        """The group that stands for a run of the set in a claim: its largest size and budget."""
        return next((name for name, base in self.top.items() if base == text), None)

    @property
    def lines(self) -> list[str]:
        """All of it in words, a line each."""
        found = [line for entry in self.rungs for line in entry.lines]
        for entry in self.accuracy:
            found.append(
                f"decision accuracy of {quantity(entry['size'])} parameters: {entry['agree']:.0f} of "
                f"{entry['pairs']:.0f} rankings of a pair are those of the largest size and budget"
            )
        found += self.unranked
        together: dict[tuple[float, str, str], list[ExchangeRate]] = {}
        for size, rate in self.rates:
            together.setdefault((size, rate.first, rate.second), []).append(rate)
        refused: dict[tuple[str, str, str], list[float]] = {}
        for (size, first, second), rates in together.items():
            if shares := [rate.share for rate in rates if rate.ratio is not None]:
                what = f"at {quantity(size)} parameters {first}"
                found.append(f"{what} reaches the loss of {second} with {', '.join(shares)}")
            else:
                refused.setdefault((first, second, rates[0].reason), []).append(size)
        for (first, second, reason), sizes in refused.items():
            where = ", ".join(quantity(size) for size in sizes)
            found.append(f"at {where} parameters {first} against {second}: no exchange rate: {reason}")
        return [*found, *(entry.words for entry in self.multipliers)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "runs": [entry.to_dict() for entry in self.rungs],
            "decision_accuracy": list(self.accuracy),
            "exchange_rates": [{"size": size, **rate.to_dict()} for size, rate in self.rates],
            "multipliers": [entry.to_dict() for entry in self.multipliers],
            "lines": self.lines,
        }


def facts(group: Group) -> Mapping[str, Any]:
    """What the runs of a group record of their rung; empty outside a ladder."""
    found = group.reference.experiment.get("ladder")
    return found if isinstance(found, Mapping) else {}


def rung(group: Group) -> tuple[float, float]:
    """Size and tokens per parameter, as the recipe asks for them."""
    own = facts(group)
    return float(own["size"]), float(own["tokens_per_parameter"])


def ladder_of(groups: Sequence[Group], metric: str, baseline: str | None, lower_is_better: bool) -> Ladder | None:
    """The ladder that these groups are rungs of; None where they are of none. `baseline` is the name of a group."""
    members: dict[str, list[Group]] = {}
    order = sorted((group for group in groups if facts(group) and group.by_seed(metric)), key=rung)
    for group in order:
        members.setdefault(str(facts(group)["base"]), []).append(group)
    if not members or not lower_is_better:
        return None
    own = next((str(facts(group)["base"]) for group in groups if group.name == baseline and facts(group)), None)
    names = sorted(members, key=lambda name: name != own)
    rungs = tuple(Rungs(name, tuple(members[name]), metric) for name in names)
    others = [(entry, rungs[0]) for entry in rungs[1:]]
    rates = [rate for one, other in others for rate in _rates(one, other)]
    ratios = [_multiplier(one, other) for one, other in others]
    accuracy, unranked = _decision_accuracy(rungs)
    return Ladder(rungs, tuple(accuracy), tuple(rates), tuple(ratios), tuple(unranked))


def rung_pairs(ladder: Ladder) -> list[PairedDifference]:
    """The differences of the runs of the set at each rung, Holm-corrected over the pairs of a rung."""
    members: dict[tuple[float, float], dict[str, dict[int, float]]] = {}
    for entry in ladder.rungs:
        for group in entry.groups:
            members.setdefault(rung(group), {})[group.name] = group.by_seed(entry.metric)
    return [pair for rungs in members.values() for pair in all_pairs(rungs)]


def _multiplier(one: Rungs, other: Rungs) -> Multiplier:
    for side in (one, other):
        if isinstance(side.frontier, Refused):
            return Multiplier(one.base, other.base, reason=f"{side.base}: {side.frontier.reason}")
    assert not isinstance(one.frontier, Refused) and not isinstance(other.frontier, Refused)
    low, high = shared_sizes(one.frontier, other.frontier)
    sizes = other.points.parameters
    shared = (sizes >= low / SAME_SIZE) & (sizes <= high * SAME_SIZE)
    if low >= high or not shared.any():
        return Multiplier(one.base, other.base, reason="their sizes do not overlap")
    return multipliers(one.base, other.base, one.frontier, other.frontier, other.flops[shared])


def _decision_accuracy(rungs: Sequence[Rungs]) -> tuple[list[dict[str, float]], list[str]]:
    """For each size but the largest: rankings of pairs, over all budgets, and how many are those of the largest size at
    its largest budget; and why a pair is not among them, in words."""
    means = {(entry.base, *rung(group)): group.mean(entry.metric) for entry in rungs for group in entry.groups}
    places = sorted({(size, times) for _base, size, times in means})
    found: dict[float, dict[str, float]] = {}
    left = []
    for one, other in itertools.combinations([entry.base for entry in rungs], 2):
        gaps = {}
        for place in places:
            first, second = means.get((one, *place)), means.get((other, *place))
            if first is not None and second is not None:
                gaps[place] = first - second
        if not (top := gaps.get(places[-1])):
            why = "their losses are equal" if top == 0 else "one of them has no result"
            left.append(f"decision accuracy is not of {one} and {other}: at the largest size and budget {why}")
            continue
        for (size, _times), gap in gaps.items():
            if size < places[-1][0]:
                entry = found.setdefault(size, {"size": size, "pairs": 0.0, "agree": 0.0})
                entry["pairs"] += 1
                entry["agree"] += gap * top > 0
    return [found[size] for size in sorted(found)], left


def _rates(one: Rungs, other: Rungs) -> list[tuple[float, ExchangeRate]]:
    """The exchange rates on all axes at each size that both have, read from losses that have all decayed."""
    found = []
    for size in sorted({rung(group)[0] for group in one.groups} & {rung(group)[0] for group in other.groups}):
        sides = [[group for group in side.groups if rung(group)[0] == size] for side in (one, other)]
        seeds = sorted(set.intersection(*(set(group.by_seed(one.metric)) for side in sides for group in side)))
        if min(len(side) for side in sides) < 2:
            continue
        untold = any(not group.mean("tokens_seen") for side in sides for group in side)
        if not seeds or untold:
            reason = "tokens are not recorded" if untold else "they share no seed"
            rates = [ExchangeRate(one.base, other.base, "tokens", reason=reason)]
        else:
            rates = exchange_rates(one.base, other.base, *(_curves(side, seeds, one.metric) for side in sides))
        found += [(size, rate) for rate in rates]
    return found


def _curves(groups: Sequence[Group], seeds: Sequence[int], metric: str) -> SeedCurves:
    tokens = np.asarray([group.mean("tokens_seen") or 0.0 for group in groups])
    losses = np.asarray([[group.by_seed(metric)[seed] for group in groups] for seed in seeds])
    flops = [_of_seed(groups, "flops_per_token", seed) for seed in seeds]
    speeds = [_of_seed(groups, "train_tokens_per_second", seed) for seed in seeds]
    seconds = None if None in speeds else 1 / np.asarray(speeds, dtype=np.float64)
    return SeedCurves(tokens, losses, None if None in flops else np.asarray(flops, dtype=np.float64), seconds)


def _of_seed(groups: Sequence[Group], key: str, seed: int) -> float | None:
    """The mean of a number over the budgets of one size, for one seed; None where a run lacks it, or has 0."""
    values = [group.by_seed(key).get(seed) for group in groups]
    return None if not all(values) else float(np.mean([value or 0.0 for value in values]))
