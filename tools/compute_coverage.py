"""How often the bands of a ladder's best sizes and multipliers hold the truth, in simulated ladders.

    python -m tools.compute_coverage 60

A line for each pair of true laws (those of `joined` have another form than is fitted) and kind of error: the share of
multipliers and of best sizes within their bands, and the mean width of either in logarithms.
"""

from __future__ import annotations

import sys

import numpy as np

from tests.analysis.ladder_studies import ERRORS, PAIRS, compute_study, covered


def main(studies: int) -> None:
    """Prints the table."""
    print("laws    errors  multipliers within  width  sizes within  width")
    for errors in ERRORS:
        for pair in PAIRS:
            found = [compute_study(pair, errors, seed) for seed in range(studies)]
            shares = []
            for bands in ([study.ratios for study in found], [study.minima for study in found]):
                widths = np.log(np.clip([ends[:, 2] / ends[:, 0] for ends in bands], 1.0, 1e3))
                shares += [np.mean([covered(ends) for ends in bands]), np.mean(widths)]
            print(
                f"{pair:7} {errors:7} {shares[0]:18.3f} {shares[1]:6.3f} {shares[2]:13.3f} {shares[3]:6.3f}", flush=True
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
