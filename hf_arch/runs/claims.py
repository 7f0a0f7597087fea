"""The grammar of claims: what of a hypothesis, which is free text, a program can judge.

    A better than B        A worse than B        A not distinguishable from B        A within 0.1 of B
    A at least 0.99        A at most 1.9         A within 0.05 of 1.88

A and B are names of runs, or of architectures that one run has.
"""

from __future__ import annotations

import re

CLAIM = re.compile(
    r"(?P<first>[\w.+=/-]+)\s+(?:is\s+)?"
    r"(?P<relation>better than|worse than|not distinguishable from|at least|at most|within (?P<bound>\d*\.?\d+) of)\s+"
    r"(?P<second>[\w.+=/-]*\w)"
)


def claims_in(hypothesis: str) -> tuple[str, ...]:
    """The claims of a hypothesis, each once, with single spaces; the whole text where it holds none, () where it is
    empty."""
    text = " ".join(hypothesis.split())
    found = dict.fromkeys(match[0] for match in CLAIM.finditer(text))
    return tuple(found) or ((text,) if text else ())
