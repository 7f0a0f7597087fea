"""How a model goes over its rows: in which precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_arch.analysis.audits.unseen import numbers_of, severity_of, values_of
from hf_arch.analysis.finding import Finding
from hf_arch.analysis.run_names import run_labels, run_names
from hf_arch.runs.record import RunRecord

HALVES = ("bfloat16", "float16")
PRODUCTS = 0.01
"""Of the multiplications of a row: so much more of them in half precision on one side is named."""



def check_product_types(runs: Sequence[RunRecord]) -> Finding | None:
    """The precision that a run says it has, in every part and in both modes. Of a run in half precision parts keep fp32
    as they are made to, and only that both modes do so is asked."""
    shares = numbers_of(runs, _otherwise)
    if not shares or max(shares.values()) - min(shares.values()) <= PRODUCTS:
        return None
    other = [run for run, share in shares.items() if share > PRODUCTS]
    run = max(other, key=lambda run: shares[run])
    training, scoring = (_in_half(run.unseen or {}, mode) for mode in ("training", "scoring"))
    sentence = (
        f"Parts of {run_names(other)} multiply in another precision than their run: {training:.0%} of the products are "
        f"in half precision in training, and {scoring:.0%} when it is scored, of a run in {run.precision}."
    )
    return Finding("precision", severity_of("precision", runs), sentence, run_labels(other), values_of(shares))


def _otherwise(run: RunRecord, facts: Mapping[str, Any]) -> float:
    training, scoring = _in_half(facts, "training"), _in_half(facts, "scoring")
    return max(training, scoring) if run.precision == "fp32" else abs(training - scoring)


def _in_half(facts: Mapping[str, Any], mode: str) -> float:
    shares = (facts.get("product_types") or {}).get(mode) or {}
    return float(sum(shares.get(name, 0.0) for name in HALVES))

