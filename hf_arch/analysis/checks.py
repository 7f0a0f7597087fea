"""The names of the audit's checks, and what a violation of each means for a claim about two runs.

A check that *confounds* is one whose violation gives another reason for a difference than the one claimed. The others
concern the record (a run that failed), or a machine's speed, and leave a claim about losses alone.
"""

from __future__ import annotations

CONFOUNDING = (
    "tokens",
    "data",
    "tokenizer",
    "order",
    "rows",
    "seen rows",
    "scoring",
    "parameters",
    "non-embedding parameters",
    "active parameters",
    "width",
    "depth",
    "flops",
    "state",
    "short convolution",
    "branch scale",
    "branch gain",
    "initialisation",
    "embedding scale",
    "tying",
    "dropout",
    "learning rate",
    "still learning",
    "schedule",
    "optimiser",
    "clipping",
    "precision",
    "kernels",
    "code",
    "plugin files",
    "versions",
    "settings",
    "one change",
    "seeds",
    "dropped runs",
    "duplicates",
    "finite",
    "losses",
    "resumed",
    "recorded",
    "consistent",
    "edited",
    "metric",
)
OTHERS = (
    *("finished", "device", "utilisation", "load", "timing", "speed", "spread", "brought along", "chosen weights"),
    "scores",
)
ON_SPEED = ("device", "load", "timing", "utilisation")
"""Which of the others confound a claim about a speed or about memory."""
SPEEDS = (
    "train_tokens_per_second",
    "decode_tokens_per_second",
    "prefill_tokens_per_second",
    "peak_memory_bytes",
    "wall_seconds",
    "mfu",
)


OF_LEARNING = ("learning rate", "still learning", "schedule", "branch scale", "branch gain", "initialisation", "order")
"""What moves losses and neither time nor memory."""


def confounds(check: str, metric: str) -> bool:
    """Whether a violation of `check` gives another reason for a difference in `metric`."""
    if metric in SPEEDS:
        return check in ON_SPEED or (check in CONFOUNDING and check not in OF_LEARNING)
    return check in CONFOUNDING
