"""The largest size predicted from the others: its band covers what comes, whether the points pin down E or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hf_arch.analysis.held_out import HeldOut, predict_held_out
from hf_arch.analysis.loss_surface import Points, fit_surface
from hf_arch.analysis.scaling import Refused
from tests.analysis.ladder_studies import LAWS, predicted

STUDIES = 16


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("errors", ["points", "trunks"])
def test_the_band_covers_new_losses(law: str, errors: str) -> None:
    """Of so many ladders at most 5 % and two standard errors of that are outside the band."""
    tests = [predicted(law, errors, seed) for seed in range(STUDIES)]
    assert all(isinstance(test, HeldOut) for test in tests)
    outside = np.mean([1 - test.inside / len(test.measured) for test in tests if isinstance(test, HeldOut)])
    assert outside <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / STUDIES)


def test_a_scatter_of_six_sizes_counts_with_its_own_degrees() -> None:
    """Sizes that scatter and seeds that do not: the interval is that of Student's t of three degrees of freedom."""
    from scipy.stats import t

    from hf_arch.analysis.admissible import _errors

    common = np.asarray([0.02, -0.03, 0.01, -0.01, 0.03, -0.02])
    place = np.repeat(np.arange(6), 3)
    points = Points(np.ones(18), np.ones(18), tuple(np.full(2, 2.0) for _ in range(18)))
    shared, _own = _errors(points, common[place], place, np.full(6, 2), 9)
    exact = t.ppf(0.975, 3) * np.sqrt((common**2).sum() / 3)
    assert t.ppf(0.975, 9) * np.sqrt(shared) == pytest.approx(exact)


def ladder(offset: float, exponent: float, *, seeds: int = 2, sizes: int = 5, noise: float = 0.002) -> Points:
    rng = np.random.default_rng(3)
    n = np.repeat(np.geomspace(1e4, 6e4, sizes), 4)
    d = n * np.tile([5.0, 10.0, 20.0, 40.0], sizes)
    means = offset + (1.9 - offset) * (n / 2e4) ** -exponent + 0.2 * (d / 1e6) ** -0.4
    return Points(n, d, tuple(mean + noise * rng.standard_normal(seeds) for mean in means))


def split(points: Points) -> tuple[Points, Points]:
    largest = points.parameters == points.parameters.max()
    return points.where(~largest), points.where(largest)


def test_a_law_that_is_refused_still_predicts() -> None:
    """E is 0 here, which leaves the constants open; the next size is known to a few per cent all the same."""
    points = ladder(0.0, 0.08)
    assert isinstance(fit_surface(points, samples=20), Refused)
    test = predict_held_out(*split(points))
    assert isinstance(test, HeldOut) and test.inside == 4
    assert "within the 95 % band at 4 of 4 budgets" in test.words
    assert max(np.subtract(test.high, test.low)) < 0.1


def test_a_wrong_loss_is_outside_the_band() -> None:
    rest, target = split(ladder(1.0, 0.25))
    test = predict_held_out(rest, replace(target, losses=tuple(losses + 0.15 for losses in target.losses)))
    assert isinstance(test, HeldOut) and test.inside == 0


def test_the_band_never_sees_what_it_predicts() -> None:
    rest, target = split(ladder(1.0, 0.25))
    one = predict_held_out(rest, target)
    other = predict_held_out(rest, replace(target, losses=tuple(losses + 5 for losses in target.losses)))
    assert isinstance(one, HeldOut) and isinstance(other, HeldOut)
    assert (one.low, one.high, one.predicted) == (other.low, other.high, other.predicted)


def test_the_band_is_the_exact_interval_of_a_linear_model() -> None:
    """With a and b held, E, A and B are a linear model, whose prediction interval is known in closed form."""
    from hf_arch.analysis.admissible import AdmissibleLaws

    rest, target = split(ladder(1.0, 0.25, noise=0.01))
    laws = AdmissibleLaws(rest, 1e-4 * np.eye(len(rest.losses)), 4.0)
    laws.exponents = np.asarray([[0.3, 0.4]])
    squares, constants = laws._best_constants(laws.exponents)
    laws.least = float(squares[0])
    n, d = float(target.parameters[0]), float(target.tokens[0])

    def columns(sizes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return np.stack([np.ones_like(sizes), (sizes / laws.unit[0]) ** -0.3, (tokens / laws.unit[1]) ** -0.4], axis=1)

    x, new = columns(rest.parameters, rest.tokens), columns(np.asarray([n]), np.asarray([d]))[0]
    fitted = np.linalg.lstsq(x, rest.means, rcond=None)[0]
    half = 2 * np.sqrt(1e-4 * (1 + new @ np.linalg.inv(x.T @ x) @ new))
    assert constants[0] == pytest.approx(fitted)
    assert laws.band(n, d, 1e-4) == pytest.approx((new @ fitted - half, new @ fitted + half))


@pytest.mark.parametrize(
    "given, reason",
    [
        (ladder(1.0, 0.25, sizes=3), "of the others, 2 sizes and 8 budgets; at least 3 of each are needed"),
        (ladder(1.0, 0.25, seeds=1), "of the others, 4 sizes and 1 seeds leave 1 degrees of freedom"),
        (ladder(1.0, 0.25, noise=1.0), "is wider than the losses of all other sizes"),
    ],
)
def test_what_cannot_be_predicted_is_refused(given: Points, reason: str) -> None:
    test = predict_held_out(*split(given))
    assert isinstance(test, Refused), test
    assert reason in test.reason
