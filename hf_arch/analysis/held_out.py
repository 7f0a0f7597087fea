"""The largest size of a ladder predicted from the others, with a band that says what those do not determine.

The constants of L(N, D) = E + A N^-a + B D^-b may be unknown where the loss itself is well known: over a narrow range
of sizes a low E with a small a and a high E with a large a are the same curve, and one step beyond the range they
still differ little. So a law that is refused (`loss_surface`) does not refuse a prediction. The band is the set of new
losses y that the points do not reject: with y added as one more point, the best fit over all laws may rise by no more
than t^2 (`admissible`). In a linear model this is the exact prediction interval. A band wider than all losses that were
measured is refused.

Simulated (`tools.prediction_coverage`: 4 sizes predict a fifth, 4 budgets, 2 seeds; E large, small and 0), the band of
95 % holds at least 95 % of new losses under noise of points and of trunks. What it does not hold is an error that
neither the seeds nor the scatter of so few sizes can show: shapes that scatter several times more than the seeds do
(85 to 90 % from four sizes, 95 to 96 % from six), and a law that is wrong, whose exponents change beyond the sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_arch.analysis.admissible import admissible_laws
from hf_arch.analysis.loss_surface import Points
from hf_arch.analysis.scaling import Refused
from hf_arch.analysis.stats import LEVEL


@dataclass(frozen=True)
class HeldOut:
    """The largest size, predicted from the others: measured losses, predictions and their bands, one a budget."""

    size: float
    tokens: tuple[float, ...]
    measured: tuple[float, ...]
    predicted: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def inside(self) -> int:
        """Budgets at which the measured loss is within the band."""
        return sum(a <= x <= b for a, x, b in zip(self.low, self.measured, self.high, strict=True))

    @property
    def words(self) -> str:
        """How well it was predicted, in one sentence."""
        off = max(abs(p / m - 1) for p, m in zip(self.predicted, self.measured, strict=True))
        half = max((b - a) / 2 / p for a, b, p in zip(self.low, self.high, self.predicted, strict=True))
        return (
            f"the largest size, predicted from the others: within the 95 % band at {self.inside} of "
            f"{len(self.measured)} budgets, off by at most {off:.1%} (half the band is at most {half:.1%})"
        )


def predict_held_out(rest: Points, target: Points, level: float = LEVEL) -> HeldOut | Refused:
    """The losses of `target`, points of one size, predicted from the points of the other sizes, or why they are not."""
    laws = admissible_laws(rest, level)
    if isinstance(laws, Refused):
        return Refused(f"of the others, {laws.reason}")
    predicted = laws.predict(target.parameters, target.tokens)
    bands = [laws.band(n, d, laws.variance) for n, d in zip(target.parameters, target.tokens, strict=True)]
    low, high = np.asarray(bands).T
    if float(np.min(high - low)) > float(np.ptp(rest.means)):
        return Refused(
            f"the band, {float(np.min(high - low)):.2g} nats wide, is wider than the losses of all other sizes and "
            f"budgets ({float(np.ptp(rest.means)):.2g} nats)"
        )
    return HeldOut(
        float(target.parameters[0]),
        *(tuple(values.tolist()) for values in (target.tokens, target.means, predicted, low, high)),
    )
