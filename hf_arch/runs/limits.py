"""How far two sides of a claim may be apart, for the audit of what was trained and for controls before it."""

from __future__ import annotations

BRANCH_RATIO = 3.0
"""Between what branches write of their stream before training."""
FLOPS_RATIO = 2.0
"""Between training FLOPs a token, where the recipe matches by something else."""
