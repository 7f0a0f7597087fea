"""How often the band of a ladder's prediction holds the losses of the largest size, in simulated ladders.

    python -m tools.prediction_coverage 1000

A line for each true law and kind of error: budgets within the band, ladders with all four within, half the band and the
mean error in nats, and ladders without a prediction. The last number is the standard error of a share of 95 %.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np

from hf_arch.analysis.held_out import HeldOut
from tests.analysis.ladder_studies import ERRORS, LAWS, MORE_SIZES, SIZES, predicted


def main(studies: int) -> None:
    """Prints the table."""
    print("sizes  law     errors  budgets within  ladders within  half the band  error   refused")
    for sizes, law in itertools.product((SIZES, MORE_SIZES), LAWS):
        for errors in ERRORS:
            tests = [predicted(law, errors, seed, sizes) for seed in range(studies)]
            found = [test for test in tests if isinstance(test, HeldOut)]
            share = np.mean([test.inside / len(test.measured) for test in found])
            whole = np.mean([test.inside == len(test.measured) for test in found])
            half = np.mean([np.subtract(test.high, test.low).mean() / 2 for test in found])
            off = np.mean([np.abs(np.subtract(test.predicted, test.measured)).mean() for test in found])
            print(
                f"{len(sizes) - 1:5d}  {law:7} {errors:7} {share:14.3f} {whole:15.3f} {half:14.4f} {off:7.4f} "
                f"{studies - len(found):6d}",
                flush=True,
            )
    print(f"standard error {np.sqrt(0.05 * 0.95 / studies):.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
