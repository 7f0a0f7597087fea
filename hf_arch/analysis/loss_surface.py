"""The law of a ladder: loss against parameters and tokens, L(N, D) = E + A N^-a + B D^-b, with a bootstrap.

Fitted as Hoffmann et al. (2022) do: the sum of Huber losses (delta 0.001) of log L, with log E, log A, log B, a and b
free, by L-BFGS from a grid of starts. The bootstrap draws points and, within each, seeds. What the points do not pin
down is refused, with the reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_arch.analysis.scaling import LARGEST_SHARE_AT_BOUNDS, MIN_POINTS, NEGLIGIBLE_OFFSET, WIDEST_EXPONENT, Refused
from hf_arch.analysis.stats import LEVEL

HUBER = 1e-3
MIN_SIZES = MIN_BUDGETS = 3
EXPONENTS = (0.02, 2.0)
"""Bounds of a and b."""
STARTS = tuple(itertools.product((0.2, 0.5), (0.2, 0.5), (0.3, 0.7)))
"""a, b, and E as a share of the smallest loss."""
DRAWS = 200


@dataclass(frozen=True)
class Points:
    """What is fitted: parameters [n], tokens [n], and the losses of the seeds at each of the n points."""

    parameters: np.ndarray
    tokens: np.ndarray
    losses: tuple[np.ndarray, ...]

    @property
    def means(self) -> np.ndarray:
        """Mean loss of each point, float64 [n]."""
        return np.asarray([values.mean() for values in self.losses])

    def where(self, mask: np.ndarray) -> Points:
        """The points for which `mask` [n] is true."""
        kept = np.flatnonzero(mask)
        return Points(self.parameters[kept], self.tokens[kept], tuple(self.losses[i] for i in kept))


@dataclass(frozen=True)
class LossSurface:
    """E, A, B, a, b in `values`, the same of each bootstrap draw in `draws` [samples, 5]; A and B are of parameters and
    tokens over `unit` (their geometric means), so that no number is astronomical."""

    values: np.ndarray
    draws: np.ndarray
    unit: tuple[float, float]
    points: int

    def predict(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Loss in nats at each point, float64 [n]."""
        return _law(self.values, np.asarray(parameters) / self.unit[0], np.asarray(tokens) / self.unit[1])

    def band(self, parameters: np.ndarray, tokens: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper edge of the pointwise bootstrap band, float64 [n] each."""
        n, d = np.asarray(parameters) / self.unit[0], np.asarray(tokens) / self.unit[1]
        predicted = np.asarray([_law(values, n, d) for values in self.draws])
        low, high = np.quantile(predicted, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    def interval(self, index: int, level: float = LEVEL) -> tuple[float, float]:
        """Bootstrap interval of one of E, A, B, a, b, by its place."""
        low, high = np.quantile(self.draws[:, index], [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    @property
    def amplitudes(self) -> tuple[float, float]:
        """A and B of parameters and tokens themselves."""
        _offset, big_a, big_b, a, b = self.values
        return float(big_a * self.unit[0] ** a), float(big_b * self.unit[1] ** b)

    @property
    def words(self) -> str:
        """The law with its intervals, in one sentence."""
        offset, _a, _b, alpha, beta = self.values
        big_a, big_b = self.amplitudes
        e, a, b = (self.interval(index) for index in (0, 3, 4))
        return (
            f"L(N, D) = {offset:.3g} + {big_a:.3g} N^(-{alpha:.3g}) + {big_b:.3g} D^(-{beta:.3g}) over {self.points} "
            f"points; 95 % bootstrap: a [{a[0]:.2g}, {a[1]:.2g}], b [{b[0]:.2g}, {b[1]:.2g}], "
            f"E [{e[0]:.3g}, {e[1]:.3g}]"
        )


def fit_surface(points: Points, samples: int = DRAWS, seed: int = 0) -> LossSurface | Refused:
    """The law through the points, or why they allow none."""
    if reason := _too_few(points):
        return Refused(reason)
    unit = tuple(float(np.exp(np.log(x).mean())) for x in (points.parameters, points.tokens))
    n, d, means = points.parameters / unit[0], points.tokens / unit[1], points.means
    if any(np.corrcoef(np.log(x), means)[0, 1] >= 0 for x in (n, d)):
        return Refused("the loss does not fall with parameters and with tokens")
    best = _best(n, d, means, _starts(means))
    if reason := _bound(best, means):
        return Refused(reason)
    rng = np.random.default_rng(seed)
    draws = np.asarray([_best(*_resampled(n, d, points, rng), [_free(best)]) for _ in range(samples)])
    at_bounds = np.mean([bool(_bound(draw, means)) for draw in draws])
    if at_bounds > LARGEST_SHARE_AT_BOUNDS:
        return Refused(f"{at_bounds:.0%} of the bootstrap's fits lie at a bound: the losses do not determine the law")
    surface = LossSurface(best, draws, (unit[0], unit[1]), len(means))
    for name, index in (("a", 3), ("b", 4)):
        low, high = surface.interval(index)
        if high > WIDEST_EXPONENT * low:
            return Refused(f"the exponent {name} is not determined: 95 % bootstrap [{low:.2g}, {high:.2g}]")
    return surface


def _too_few(points: Points) -> str:
    count, sizes, budgets = len(points.losses), len(set(points.parameters)), len(set(points.tokens))
    if count < MIN_POINTS:
        return f"{count} points; five parameters need at least {MIN_POINTS}"
    if sizes < MIN_SIZES:
        return f"{sizes} sizes; curvature in size needs at least {MIN_SIZES}"
    by_size = min(int((points.parameters == size).sum()) for size in set(points.parameters))
    if budgets < MIN_BUDGETS or by_size < 2:
        return f"{by_size if by_size < 2 else budgets} budgets of tokens; at least {MIN_BUDGETS} are needed"
    return ""


def _starts(means: np.ndarray) -> list[np.ndarray]:
    """Where the search begins: log E, log A, log B, a, b, for each of `STARTS`."""
    least = float(means.min())
    rest = [max(float(means.mean()) - share * least, 1e-3) / 2 for _a, _b, share in STARTS]
    return [
        np.asarray([np.log(share * least), np.log(half), np.log(half), a, b])
        for (a, b, share), half in zip(STARTS, rest, strict=True)
    ]


def _free(values: np.ndarray) -> np.ndarray:
    return np.concatenate([np.log(values[:3]), values[3:]])


def _law(values: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    offset, big_a, big_b, a, b = values
    return offset + big_a * n**-a + big_b * d**-b


def _best(n: np.ndarray, d: np.ndarray, losses: np.ndarray, starts: Sequence[np.ndarray]) -> np.ndarray:
    """E, A, B, a, b of the smallest Huber loss of log L, from each of the starts."""
    from scipy.optimize import minimize

    log_n, log_d, target = np.log(n), np.log(d), np.log(losses)
    wide = (-12.0, 6.0)
    bounds = [wide, wide, wide, EXPONENTS, EXPONENTS]

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        parts = np.stack([np.full_like(log_n, free[0]), free[1] - free[3] * log_n, free[2] - free[4] * log_d])
        peak = parts.max(axis=0)
        shares = np.exp(parts - peak)
        total = shares.sum(axis=0)
        shares /= total
        residual = peak + np.log(total) - target
        small = np.abs(residual) <= HUBER
        value = np.where(small, 0.5 * residual**2, HUBER * (np.abs(residual) - 0.5 * HUBER)).sum()
        slope = np.clip(residual, -HUBER, HUBER)
        by_part = shares * slope
        gradient = np.asarray([*by_part.sum(axis=1), -(by_part[1] @ log_n), -(by_part[2] @ log_d)])
        return value / HUBER**2, gradient / HUBER**2

    fits = [
        minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500}) for start in starts
    ]
    free = min(fits, key=lambda fit: float(fit.fun)).x
    return np.concatenate([np.exp(free[:3]), free[3:]])


def _bound(values: np.ndarray, losses: np.ndarray) -> str:
    """Which bound the fit E, A, B, a, b lies at, in words; empty where it lies at none."""
    for name, exponent in zip("ab", values[3:], strict=True):
        if not EXPONENTS[0] * 1.001 < exponent < EXPONENTS[1] * 0.999:
            return f"the exponent {name} is at the bound of its search, {exponent:.3g}: the losses do not determine it"
    least = NEGLIGIBLE_OFFSET * float(losses.min())
    if values[0] < least:
        return "the offset E is at its bound, 0: the losses show no curvature"
    for name, what, amplitude in (("A", "size", values[1]), ("B", "tokens", values[2])):
        if amplitude < 1e-4:
            return f"{name} is at its bound, 0: the losses show no dependence on {what}"
    return ""


def _resampled(
    n: np.ndarray, d: np.ndarray, points: Points, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points drawn with replacement, and within each its seeds; drawn again until two sizes and budgets are left."""
    while True:
        drawn = rng.integers(0, len(n), len(n))
        if len(set(n[drawn])) >= MIN_SIZES and len(set(d[drawn])) >= MIN_BUDGETS:
            break
    losses = [points.losses[i][rng.integers(0, len(points.losses[i]), len(points.losses[i]))].mean() for i in drawn]
    return n[drawn], d[drawn], np.asarray(losses)
