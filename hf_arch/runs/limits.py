"""How far two sides of a claim may be apart, for the audit of what was trained and for controls before it."""

from __future__ import annotations

BRANCH_RATIO = 3.0
"""Between what branches write of their stream before training."""
FLOPS_RATIO = 2.0
"""Between training FLOPs a token, where the recipe matches by something else."""
WIDTH_RATIO = 2.0
"""Between widths of the stream, and between numbers of layers."""
BRANCH_GAIN = 10.0
"""Between factors that stay on branches: beyond it, what a step of the optimiser changes is not the same on both
sides."""
LARGEST_GAIN = 1000.0
"""Of a control that makes branches equal at the start: beyond it no such control is made."""
