"""Two groups at equal tokens, equal training FLOPs and equal seconds, and their exchange rate.

Where both cost the same on an axis, the difference is the table's. Otherwise the one that has spent more is read at the
budget of the other, on its curve of validation losses, which is a comparison only where its learning rate was constant:
under a schedule that decays the curves are described and not judged. The winner may change from axis to axis.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_arch.analysis.audits.machine import unlike_machines
from hf_arch.analysis.controls import claimed_pairs
from hf_arch.analysis.curves import decaying_schedule, shared_curve
from hf_arch.analysis.exchange import AXES, ExchangeRate, SeedCurves, exchange_rates
from hf_arch.analysis.stats import PairedDifference, holm, paired_difference
from hf_arch.core.formats import duration, quantity

if TYPE_CHECKING:
    from hf_arch.analysis.groups import Group
    from hf_arch.analysis.measured import Measured
    from hf_arch.runs.record import RunRecord

LOSS, CURVE = "final_val_loss", "val_loss"
EQUAL = 0.01
"""Budgets that differ by less are equal, as sizes within the tolerance of `match` are."""
ABOUT_BUDGETS = ("tokens", "flops", "schedule", "still learning")
"""Checks that speak of what these comparisons take into account themselves."""


@dataclass(frozen=True)
class AtBudget:
    """The two groups at one budget. `difference` is None where they are not compared, for the `reason`; `gap` is then
    how far apart their curves stand there (first minus second, nats), if they do."""

    axis: str
    budget: float | None = None
    difference: PairedDifference | None = None
    gap: float | None = None
    reason: str = ""

    @property
    def words(self) -> str:
        """`on equal tokens (819k) better by 0.021 [0.012, 0.030]`."""
        return f"on equal {self.place} {self.outcome}"

    @property
    def outcome(self) -> str:
        """What came out there, or why nothing did."""
        return self.reason if self.difference is None else self.difference.words

    @property
    def place(self) -> str:
        """The axis and the budget: `tokens (819k)`."""
        if self.budget is None:
            return AXES[self.axis]
        amount = duration(self.budget) if self.axis == "seconds" else quantity(self.budget)
        return f"{AXES[self.axis]} ({amount})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        difference = None if self.difference is None else self.difference.to_dict()
        return {
            "axis": self.axis,
            "budget": self.budget,
            "difference": difference,
            "verdict": "not compared" if self.difference is None else self.difference.verdict,
            "gap": self.gap,
            "words": self.words,
        }


@dataclass(frozen=True)
class PairBudgets:
    """A pair on all axes, with its exchange rates in both directions. `confounds`: checks of the audit that give
    another reason for a difference on any axis."""

    first: str
    second: str
    axes: tuple[AtBudget, ...]
    rates: tuple[ExchangeRate, ...]
    confounds: tuple[str, ...] = ()

    @property
    def flip(self) -> str:
        """Where the winner changes from axis to axis, in one sentence; empty where it does not."""
        winners: dict[str, list[str]] = {}
        for entry in self.axes:
            if entry.difference is not None and entry.difference.verdict in ("better", "worse"):
                winner = self.first if entry.difference.verdict == "better" else self.second
                winners.setdefault(winner, []).append(AXES[entry.axis])
        if len(winners) > 1:
            return f"The winner flips: {'; '.join(f'{name} on equal {_listed(on)}' for name, on in winners.items())}."
        signs = {entry.axis: gap for entry in self.axes if (gap := _gap(entry))}
        turned = [AXES[axis] for axis, gap in signs.items() if "tokens" in signs and gap * signs["tokens"] < 0]
        if not turned:
            return ""
        ahead = self.second if signs["tokens"] < 0 else self.first
        return f"The order changes on equal {_listed(turned)}, where {ahead} is ahead by what is not significant."

    @property
    def words(self) -> str:
        """The axes, and whether the winner flips."""
        return self.words_but()

    def words_but(self, reasons: Collection[str] = ()) -> str:
        """The same without the axes that were not compared for one of `reasons`; empty where none is left. A reason of
        several axes is said once."""
        places: dict[str, list[str]] = {}
        for entry in self.axes:
            if entry.outcome not in reasons:
                places.setdefault(entry.outcome, []).append(entry.place)
        if not places:
            return ""
        text = "; ".join(f"on equal {_listed(on)} {outcome}" for outcome, on in places.items())
        confounded = f" Confounded ({', '.join(self.confounds)})." if self.confounds else ""
        return f"{self.first} against {self.second}: {text}.{' ' + self.flip if self.flip else ''}{confounded}"

    @property
    def refusal(self) -> str:
        """Why there is no rate on any axis in either direction; empty where there is one."""
        return "" if any(rate.ratio is not None for rate in self.rates) else self.rates[0].reason

    @property
    def rate_words(self) -> list[str]:
        """The exchange rates, a sentence for each direction; one alone where neither has any."""
        if self.refusal:
            return [f"No exchange rate of {self.first} and {self.second}: {self.refusal}."]
        found = []
        for first, second in ((self.first, self.second), (self.second, self.first)):
            rates = [rate for rate in self.rates if rate.first == first]
            shares = [rate.share for rate in rates if rate.ratio is not None]
            others = dict.fromkeys(rate.reason for rate in rates if rate.ratio is None)
            reached = [f"{first} reaches the loss of {second} with {_listed(shares)}"] if shares else []
            found.append("; ".join([*reached, *others]) + ".")
        return found

    def rate(self, first: str, axis: str) -> ExchangeRate | None:
        """How `first` of the two reaches the loss of the other."""
        return next((rate for rate in self.rates if (rate.first, rate.axis) == (first, axis)), None)

    def row(self, first: str) -> dict[str, float | None]:
        """How `first` reaches the loss of the other, as columns of a table: `tokens_to_baseline_loss` and its interval,
        the same for flops and seconds. None where there is no rate."""
        columns: dict[str, float | None] = {}
        for axis in AXES:
            rate, key = self.rate(first, axis), f"{axis}_to_baseline_loss"
            values = (None, None, None) if rate is None else (rate.ratio, rate.low, rate.high)
            columns |= dict(zip((key, f"{key}_low", f"{key}_high"), values, strict=True))
        return columns

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "first": self.first,
            "second": self.second,
            "axes": [entry.to_dict() for entry in self.axes],
            "exchange_rates": [rate.to_dict() for rate in self.rates],
            "flip": self.flip,
            "confounds": list(self.confounds),
            "words": self.words,
            "rate_words": self.rate_words,
        }


def pair_lines(pairs: Sequence[PairBudgets]) -> list[str]:
    """These pairs on all axes, a line each; a reason why several were not compared on an axis comes once, at the end,
    with all of them."""
    found: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        for entry in pair.axes:
            if entry.difference is None:
                found.setdefault((entry.reason, AXES[entry.axis]), []).append(f"{pair.first} and {pair.second}")
    shared = {key: names for key, names in found.items() if len(names) > 1}
    reasons = {reason for reason, _axis in shared}
    lines = [line for pair in pairs if (line := pair.words_but(reasons))]
    axes: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (reason, axis), names in found.items():
        if reason in reasons:
            axes.setdefault((reason, tuple(names)), []).append(axis)
    return lines + [
        f"On equal {_listed(on)} {reason.replace('not compared', 'not compared (' + '; '.join(names) + ')', 1)}."
        for (reason, names), on in axes.items()
    ]


def rate_lines(pairs: Sequence[PairBudgets]) -> list[str]:
    """The exchange rates of these pairs; a reason why there is none once, with all pairs that it is the reason of."""
    refused: dict[str, list[str]] = {}
    lines = []
    for entry in pairs:
        if entry.refusal:
            refused.setdefault(entry.refusal, []).append(f"{entry.first} and {entry.second}")
        else:
            lines += entry.rate_words
    return [*lines, *(f"No exchange rate of {'; '.join(names)}: {reason}." for reason, names in refused.items())]


def pair_budgets(measured: Measured) -> list[PairBudgets]:
    """The pairs of the claims, then those with the baseline, on all axes; Holm's correction is over the pairs of an
    axis. None where the metric is not the validation loss (which alone has curves), and for the runs of a ladder."""
    if measured.metric != LOSS or any(run.experiment.get("ladder") for run in measured.runs):
        return []
    names = {group.name: group.reference.architecture for group in measured.groups if group.counted}
    pairs = [pair for made in measured.claims for pair in claimed_pairs(made.claim, names)]
    pairs += [(name, measured.baseline) for name in names if measured.baseline not in (None, name)]
    seen: set[frozenset[str]] = set()
    found = []
    for first, second in pairs:
        if frozenset((first, second)) not in seen:
            seen.add(frozenset((first, second)))
            found.append(_pair(measured, first, second))
    return _corrected(found)


def _pair(measured: Measured, first: str, second: str) -> PairBudgets:
    one, other = measured.group(first), measured.group(second)
    seeds = sorted(one.by_seed(LOSS).keys() & other.by_seed(LOSS).keys())
    runs = [[run for seed in seeds for run in group.counted if (run.seed or 0) == seed] for group in (one, other)]
    unlike = _unlike(runs[0], runs[1])
    curves = [seed_curves(side) for side in runs]
    if not unlike and not all(curve.tokens.size > 1 for curve in curves):
        unlike = "no curve of validation losses was recorded"
    decays = next((name for run in (*runs[0], *runs[1]) if (name := decaying_schedule(run))), None)
    reason = unlike or (
        f"the learning rate decays ({decays}), so a loss before the end is not that of a run that ends there; "
        "a constant rate or experiment.ladder allows one"
        if decays
        else ""
    )
    axes = tuple(_at_budget(axis, measured, (one, other), runs, curves, unlike) for axis in AXES)
    rates: list[ExchangeRate] = []
    for (name, curve), (goal, target) in (
        ((first, curves[0]), (second, curves[1])),
        ((second, curves[1]), (first, curves[0])),
    ):
        if reason:
            rates += [ExchangeRate(name, goal, axis, reason=reason) for axis in AXES]
        else:
            rates += exchange_rates(name, goal, curve, target)
    if machines := _machines(runs):
        rates = [_without_seconds(rate, machines) for rate in rates]
    confounds = tuple(c for c in measured.confounding_checks(first, second) if c not in ABOUT_BUDGETS)
    return PairBudgets(first, second, axes, tuple(rates), confounds)


def _at_budget(
    axis: str,
    measured: Measured,
    groups: tuple[Group, Group],
    runs: list[list[RunRecord]],
    curves: list[SeedCurves],
    unlike: str,
) -> AtBudget:
    spent = [_spent(group, axis) for group in groups]
    if spent[0] is None or spent[1] is None:
        return AtBudget(axis, reason=f"not compared: {AXES[axis]} are not recorded")
    if axis == "seconds" and (machines := _machines(runs)):
        return AtBudget(axis, reason=f"not compared: {machines}")
    budget = min(spent[0], spent[1])
    if max(spent[0], spent[1]) <= (1 + EQUAL) * budget:
        return AtBudget(axis, budget, measured.pair(groups[0].name, groups[1].name))
    if unlike:
        return AtBudget(axis, budget, reason=f"not compared: {unlike}")
    losses = [
        _read(curve, budget / total * curve.tokens[-1], at_end=total <= budget)
        for curve, total in zip(curves, (spent[0], spent[1]), strict=True)
    ]
    gap = float((losses[0] - losses[1]).mean())
    costly = 0 if spent[0] > spent[1] else 1
    if decays := next((name for run in runs[costly] if (name := decaying_schedule(run))), None):
        leader = groups[0 if gap < 0 else 1].name
        return AtBudget(
            axis,
            budget,
            gap=gap,
            reason=(
                f"not compared: the curve of {leader} is lower by {abs(gap):.3g}, but the rate of "
                f"{groups[costly].name} had not decayed there ({decays})"
            ),
        )
    seeds = [run.seed or 0 for run in runs[0]]
    by_seed = [dict(zip(seeds, side.tolist(), strict=True)) for side in losses]
    return AtBudget(axis, budget, paired_difference(groups[0].name, groups[1].name, by_seed[0], by_seed[1]), gap)


def seed_curves(runs: Sequence[RunRecord]) -> SeedCurves:
    """The curves of validation losses of runs, one a seed."""
    tokens, losses = shared_curve(runs, CURVE)
    flops = [run.numbers.get("flops_per_token") for run in runs]
    speeds = [run.numbers.get("train_tokens_per_second") for run in runs]
    return SeedCurves(
        tokens,
        losses,
        None if None in flops else np.asarray(flops, dtype=np.float64),
        1 / np.asarray(speeds, dtype=np.float64) if all(speeds) else None,
    )


def _read(curve: SeedCurves, tokens: float, at_end: bool) -> np.ndarray:
    """The loss of each seed at so many tokens, linear in their logarithm, float64 [seeds]."""
    if at_end:
        return curve.losses[:, -1]
    x = np.log(curve.tokens)
    return np.asarray([np.interp(np.log(tokens), x, losses) for losses in curve.losses])


def _spent(group: Group, axis: str) -> float | None:
    """What the whole training of a group took, in the unit of the axis."""
    tokens = group.mean("tokens_seen")
    if axis == "tokens" or tokens is None:
        return tokens
    if axis == "flops":
        per_token = group.mean("flops_per_token")
        return None if per_token is None else tokens * per_token
    speed = group.mean("train_tokens_per_second")
    return tokens / speed if speed else None


def _unlike(one: Sequence[RunRecord], other: Sequence[RunRecord]) -> str:
    """What keeps the losses on two curves from being compared, in words; empty where nothing does."""
    if not one:
        return "they share no seed"
    for what, of in (
        ("other data", lambda run: run.data_fingerprint),
        ("other tokenizers", lambda run: run.tokenizer_fingerprint),
        ("other evaluation rows", lambda run: _rows(run)),
    ):
        if len({repr(of(run)) for run in (*one, *other)}) > 1:
            return f"their curves were scored on {what}"
    return ""


def _rows(run: RunRecord) -> list[object]:
    evaluation = run.config.get("evaluation") or {}
    return [evaluation.get("sequences"), evaluation.get("rows", "all"), run.numbers.get("sequence_length")]


def _machines(runs: list[list[RunRecord]]) -> str:
    """Why the seconds of the sides do not compare; empty where they do."""
    every = [run for side in runs for run in side]
    named = sorted({str(run.provenance.get("device")) for run in every})
    return f"trained on different devices ({', '.join(named)})" if len(named) > 1 else unlike_machines(every)


def _without_seconds(rate: ExchangeRate, reason: str) -> ExchangeRate:
    if rate.axis != "seconds":
        return rate
    return ExchangeRate(rate.first, rate.second, rate.axis, reason=reason)


def _corrected(pairs: list[PairBudgets]) -> list[PairBudgets]:
    """The pairs with the p values of their own differences corrected by Holm within each axis; what the table has was
    corrected there."""
    for number, _axis in enumerate(AXES):
        own = {
            i: p
            for i, pair in enumerate(pairs)
            if (difference := pair.axes[number].difference) is not None
            and difference.p_adjusted is None
            and (p := difference.p_value) is not None
        }
        for i, adjusted in zip(own, holm(list(own.values())), strict=True):
            entry = pairs[i].axes[number]
            assert entry.difference is not None
            difference = replace(entry.difference, p_adjusted=adjusted, family=len(own))
            axes = list(pairs[i].axes)
            axes[number] = replace(entry, difference=difference)
            pairs[i] = replace(pairs[i], axes=tuple(axes))
    return pairs


def _gap(entry: AtBudget) -> float:
    if entry.difference is not None and entry.difference.difference is not None:
        return entry.difference.difference.mean
    return entry.gap or 0.0


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
