"""Scaling fit: loss against size as a power law with an offset, L(N) = E + A N^(-alpha), with a bootstrap band.

For a fixed alpha the law is linear in E and A, so only alpha is searched (a grid, vectorised over the bootstrap) and
E, A >= 0 come in closed form. Three parameters go through almost any four points, so a fit that the points do not pin
down is refused, with the reason, instead of printed: fewer than six sizes, a narrow range, a loss that does not fall, a
parameter at the bound of its search, an exponent whose interval is wide.
Source of the form: Hoffmann et al., Training Compute-Optimal Large Language Models (2022), its term in N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_arch.analysis.stats import LEVEL

MIN_POINTS = 6
MIN_RANGE = 2.0
"""The largest size over the smallest: in less, every smooth curve is a line."""
LARGEST_SHARE_AT_BOUNDS = 0.05
NEGLIGIBLE_OFFSET = 0.02
"""Of the smallest loss."""
WIDEST_EXPONENT = 4.0
"""The upper end of the exponent's 95 % interval over its lower end, from which on it says nothing."""
ALPHAS = np.geomspace(0.01, 3.0, 400)


@dataclass(frozen=True)
class Refused:
    """A fit or a ratio that the measured numbers do not allow, with the reason."""

    reason: str

    @property
    def words(self) -> str:
        """The reason as a sentence of its own."""
        return f"not fitted: {self.reason}"


@dataclass(frozen=True)
class ScalingFit:
    """E (irreducible loss, nats), A, alpha, their bootstrap intervals, and the bootstrap draws behind the band."""

    offset: float
    amplitude: float
    alpha: float
    offset_interval: tuple[float, float]
    alpha_interval: tuple[float, float]
    sizes: tuple[float, ...]
    draws: np.ndarray  # [samples, 3]: E, A (of size / smallest size), alpha

    def predict(self, sizes: Sequence[float]) -> np.ndarray:
        """Loss at each size, float64 [n]."""
        x = np.asarray(sizes, dtype=np.float64)
        return self.offset + self.amplitude * x**-self.alpha

    def band(self, sizes: Sequence[float], level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper edge of the pointwise bootstrap band at each size, float64 [n] each."""
        x = np.asarray(sizes, dtype=np.float64) / self.sizes[0]
        offset, amplitude, alpha = (column[:, None] for column in self.draws.T)
        low, high = np.quantile(offset + amplitude * x[None] ** -alpha, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    @property
    def words(self) -> str:
        """The law with its intervals, in one sentence."""
        low, high = self.alpha_interval
        return (
            f"L(N) = {self.offset:.3g} + {self.amplitude:.3g} · N^(-{self.alpha:.3g}) over {len(self.sizes)} sizes; "
            f"95 % bootstrap: exponent [{low:.2g}, {high:.2g}], "
            f"offset [{self.offset_interval[0]:.3g}, {self.offset_interval[1]:.3g}]"
        )


def fit_scaling(
    sizes: Sequence[float], losses: Sequence[Sequence[float]], samples: int = 1000, seed: int = 0, level: float = LEVEL
) -> ScalingFit | Refused:
    """Fits the law to `losses[i]` (a value a seed) at `sizes[i]`, or says why these points allow no fit.

    The bootstrap redraws how far seeds are from the mean of their size, those of all sizes together, where every size
    has at least two, and otherwise the residuals of the fit; both are scaled for what was estimated from them, and for
    so few degrees of freedom (Student's t).
    """
    if len(sizes) != len(losses):
        raise ValueError(f"fit_scaling: {len(sizes)} sizes, but losses for {len(losses)}")
    order = np.argsort(sizes)
    x = np.asarray(sizes, dtype=np.float64)[order]
    groups = [np.asarray(losses[i], dtype=np.float64) for i in order]
    if (count := len(set(x.tolist()))) < MIN_POINTS:
        return Refused(f"{count} sizes; three parameters need at least {MIN_POINTS}")
    if x[-1] < MIN_RANGE * x[0]:
        return Refused(f"the largest size is {x[-1] / x[0]:.2g} times the smallest; at least {MIN_RANGE:g} are needed")
    scaled = x / x[0]  # keeps A and E of one magnitude, whatever the unit of size
    means = np.asarray([group.mean() for group in groups])
    best = _fit(scaled, means[None])[0]
    if best[1] == 0.0:
        return Refused("the loss does not fall with size")
    least = NEGLIGIBLE_OFFSET * float(means.min())
    if bound := _bound(best, least):
        return Refused(bound)
    draws = _fit(scaled, _resample(groups, scaled, means, best, samples, np.random.default_rng(seed)))
    quantiles = [(1 - level) / 2, (1 + level) / 2]
    offset_low, offset_high = np.quantile(draws[:, 0], quantiles)
    alpha_low, alpha_high = np.quantile(draws[:, 2], quantiles)
    if reason := _unidentified(draws, least, float(alpha_low), float(alpha_high)):
        return Refused(reason)
    return ScalingFit(
        offset=float(best[0]),
        amplitude=float(best[1] * x[0] ** best[2]),
        alpha=float(best[2]),
        offset_interval=(float(offset_low), float(offset_high)),
        alpha_interval=(float(alpha_low), float(alpha_high)),
        sizes=tuple(x.tolist()),
        draws=draws,
    )


def _bound(fit: np.ndarray, least: float) -> str:
    """Which bound of the search the fit E, A, alpha lies at, in words; empty where it lies at none. An offset below
    `least` counts as 0: a line in log-log coordinates."""
    if fit[2] in (ALPHAS[0], ALPHAS[-1]):
        return f"the exponent is at the bound of its search, {fit[2]:g}: the losses do not determine it"
    if fit[0] < least:
        return "the offset is at its bound, 0: the losses show no curvature in log size"
    return ""


def _unidentified(draws: np.ndarray, least: float, low: float, high: float) -> str:
    """Why the bootstrap does not pin the exponent (95 % interval `low` to `high`) down; empty where it does."""
    outside = (draws[:, 2] <= ALPHAS[0]) | (draws[:, 2] >= ALPHAS[-1])
    at_bounds = np.mean(outside | (draws[:, 0] < least) | (draws[:, 1] == 0.0))
    if at_bounds > LARGEST_SHARE_AT_BOUNDS:
        return f"{at_bounds:.0%} of the bootstrap's fits lie at a bound: the losses do not determine the exponent"
    if high > WIDEST_EXPONENT * low:
        return f"the exponent is not determined: 95 % bootstrap [{low:.2g}, {high:.2g}]"
    return ""


def _resample(
    groups: list[np.ndarray], x: np.ndarray, means: np.ndarray, best: np.ndarray, samples: int, rng: np.random.Generator
) -> np.ndarray:
    """Bootstrap versions of the mean losses, float64 [samples, sizes]."""
    if min(group.size for group in groups) >= 2:
        spread = np.concatenate([(g - g.mean()) * np.sqrt(g.size / (g.size - 1)) for g in groups])
        spread *= _small_sample(sum(group.size - 1 for group in groups))
        return means + np.stack([rng.choice(spread, size=(samples, g.size)).mean(axis=1) for g in groups], axis=1)
    free = max(x.size - 3, 1)
    fitted = best[0] + best[1] * x ** -best[2]
    residuals = (means - fitted) * np.sqrt(x.size / free) * _small_sample(free)
    return fitted + rng.choice(residuals, size=(samples, x.size))


def _small_sample(degrees: int) -> float:
    """Student's t of so many degrees of freedom over the normal's, at the level of the intervals."""
    from scipy.stats import norm, t

    upper = 0.5 + LEVEL / 2
    return float(t.ppf(upper, degrees) / norm.ppf(upper))


def _fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least-squares E, A >= 0 and alpha for every row of `y` [S, n] at `x` [n]; float64 [S, 3]."""
    basis = x[None] ** -ALPHAS[:, None]  # [G, n]
    centred = basis - basis.mean(axis=1, keepdims=True)
    y_mean = y.mean(axis=1)
    slope = (y @ centred.T) / (centred**2).sum(axis=1)  # [S, G]
    slope = np.maximum(slope, 0.0)
    offset = y_mean[:, None] - slope * basis.mean(axis=1)
    through_zero = (y @ basis.T) / (basis**2).sum(axis=1)
    slope, offset = np.where(offset < 0, through_zero, slope), np.maximum(offset, 0.0)
    error = ((y[:, None, :] - offset[..., None] - slope[..., None] * basis) ** 2).sum(axis=-1)
    pick = error.argmin(axis=1)
    rows = np.arange(len(y))
    return np.stack([offset[rows, pick], slope[rows, pick], ALPHAS[pick]], axis=1)
