"""Best sizes and multipliers by every law that the points allow: the bands hold all of those laws, and the truth."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hf_arch.analysis.admissible import AdmissibleLaws, admissible_laws, t_squared
from hf_arch.analysis.ladder_compute import Frontier, multipliers
from hf_arch.analysis.loss_surface import Points
from hf_arch.analysis.scaling import Refused
from tests.analysis.ladder_studies import (
    PAIRS,
    SIZES,
    TIMES,
    Study,
    compute_study,
    covered,
    flops_per_token,
    simulated,
)

COST = np.repeat(flops_per_token(SIZES), len(TIMES))
COMPUTES = COST * np.repeat(SIZES, len(TIMES)) * np.tile(TIMES, len(SIZES))


def laws_of(points: Points) -> AdmissibleLaws:
    laws = admissible_laws(points)
    assert not isinstance(laws, Refused)
    return laws


def drawn(laws: AdmissibleLaws, bound: float, rng: np.random.Generator, count: int) -> np.ndarray:
    """Laws at random directions whose sum of squares is `bound` above the smallest: a, b, E, A, B in rows."""
    squares, centres, inverse = laws._constants(laws.exponents, [0, 1, 2])
    found: list[np.ndarray] = []
    while len(found) < count:
        pair = rng.integers(len(squares))
        room = laws.least + bound - squares[pair]
        direction = np.linalg.cholesky(inverse[pair]) @ rng.standard_normal(3)
        length = direction @ np.linalg.solve(inverse[pair], direction)
        constants = centres[pair] + direction * np.sqrt(max(room, 0.0) / length)
        if room >= 0 and (constants >= 0).all():
            found.append(np.asarray([*laws.exponents[pair], *constants]))
    return np.asarray(found)


def frontier_losses(frontier: Frontier, law: np.ndarray, compute: np.ndarray) -> np.ndarray:
    """Loss of every size of the grid at each compute by one law, without what is tested."""
    a, b, offset, big_a, big_b = law
    unit = frontier.laws.unit
    tokens = compute[:, None] / frontier.flops
    return offset + big_a * (frontier.sizes / unit[0]) ** -a + big_b * (tokens / unit[1]) ** -b


@pytest.mark.parametrize("pair", ["E 1.2", "E 0"])
def test_the_bands_hold_every_admissible_law(pair: str) -> None:
    rng = np.random.default_rng(0)
    points = [simulated(law, "points", seed) for seed, law in enumerate(PAIRS[pair])]
    one, other = (Frontier(laws_of(entry), COST) for entry in points)
    minimum = one.minimum(float(np.sqrt(COMPUTES.min() * COMPUTES.max())))
    bound = one.laws.bound
    sizes = [
        one.sizes[frontier_losses(one, law, np.asarray([minimum.flops]))[0].argmin()]
        for law in drawn(one.laws, bound, rng, 300)
    ]
    step = one.sizes[1] / one.sizes[0]
    assert minimum.low / step <= min(sizes) and max(sizes) <= minimum.high * step
    if not minimum.above:  # the band is no wider than the laws make it
        assert np.log(max(sizes) / min(sizes)) > 0.6 * np.log(minimum.high / minimum.low)
    band = multipliers("one", "other", one, other, COMPUTES)
    follow = np.geomspace(COMPUTES.min() / 100, COMPUTES.max() * 100, 400)
    ratios = []
    for share in (0.2, 0.5, 0.8):
        sides = drawn(one.laws, share * bound, rng, 60), drawn(other.laws, (1 - share) * bound, rng, 60)
        for mine, theirs in zip(*sides, strict=True):
            curve = frontier_losses(one, mine, follow).min(axis=1)
            targets = frontier_losses(other, theirs, np.asarray(band.flops)).min(axis=1)
            ratios.append(np.exp(np.interp(-targets, -curve, np.log(follow))) / band.flops)
    least, most = np.min(ratios, axis=0), np.max(ratios, axis=0)
    assert (np.asarray(band.low) <= 1.005 * least).all() and (most <= 1.005 * np.asarray(band.high)).all()
    assert (np.log(most / least) > 0.6 * np.log(np.asarray(band.high) / band.low)).all()


def studies(errors: str, count: int) -> list[Study]:
    return [compute_study(pair, errors, seed) for pair in PAIRS for seed in range(count)]


@pytest.mark.rest
def test_the_bands_cover_the_truth() -> None:
    """Of 8 ladders, one in four of another form than is fitted, at most two are outside at one compute: 1 % have
    three where 5 % are outside."""
    found = studies("points", 2)
    assert sum(not covered(study.ratios)[3] for study in found) <= 2
    assert sum(not covered(study.minima)[1] for study in found) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("errors", ["points", "trunks"])
def test_the_bands_cover_the_truth_of_many(errors: str) -> None:
    found = studies(errors, 40)
    for kind in ("ratios", "minima"):
        outside = np.mean([~covered(getattr(study, kind)) for study in found])
        assert outside <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(found))


def test_a_best_size_beyond_the_ladder_is_said() -> None:
    frontier = Frontier(laws_of(simulated(PAIRS["E 0.8"][0], "points", 0)), COST)
    at = frontier.minimum(float(COMPUTES.max()))
    assert at.above and not at.below and at.to_dict()["at_edge"] and "50.0k or more]" in at.words
    rough = Frontier(laws_of(simulated((1.2, 0.01, 0.2, 0.01, 0.2), "points", 0)), COST)
    at = rough.minimum(float(np.sqrt(COMPUTES.min() * COMPUTES.max())))
    assert at.below and at.above and "not known" in at.words


def test_laws_that_disagree_are_said() -> None:
    points = [simulated(PAIRS["E 0.8"][0], "shapes", seed) for seed in (0, 1)]
    found = multipliers("one", "other", *(Frontier(laws_of(entry), COST) for entry in points), COMPUTES)
    assert any(low <= 1 <= high for low, high in zip(found.low, found.high, strict=True))
    assert "do not agree which of them needs less" in found.words
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert max(written["left_open"].values()) >= 1


def test_a_ratio_out_of_reach_is_none_in_json() -> None:
    points = [simulated((offset, 0.1, 0.3, 0.1, 0.3), "points", 0) for offset in (2.0, 1.0)]
    found = multipliers("one", "other", *(Frontier(laws_of(entry), COST) for entry in points), COMPUTES)
    assert "more than 32" in found.words
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["ratio"] == [None] * 7


def test_fewer_degrees_widen_the_band() -> None:
    assert t_squared(3) > t_squared(8)
    both = [laws_of(simulated(PAIRS["E 0.8"][0], "points", seed)) for seed in (0, 1)]
    frontiers = [Frontier(laws, COST) for laws in both]
    exact = multipliers("one", "other", *frontiers, COMPUTES)
    both[1].degrees = 3
    wide = multipliers("one", "other", *frontiers, COMPUTES)
    assert all(a < b for a, b in zip(wide.low, exact.low, strict=True))
