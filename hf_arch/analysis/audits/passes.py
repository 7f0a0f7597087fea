"""How a model goes over its rows: in which precision, and whether what it says of one rests on others of its batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_arch.analysis.audits.model import SEES
from hf_arch.analysis.audits.unseen import numbers_of, severity_of, values_of
from hf_arch.analysis.finding import Finding, Severity
from hf_arch.analysis.run_names import run_labels, run_names
from hf_arch.runs.record import RunRecord

HALVES = ("bfloat16", "float16")
PRODUCTS = 0.01
"""Of the multiplications of a row: so much more of them in half precision on one side is named."""

NATS = 1e-3
"""A token, in the mean over rows: at most 8e-7 in five architectures, in fp32 and in bf16 on a processor."""


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


def check_other_rows(runs: Sequence[RunRecord]) -> Finding | None:
    """A loss is of rows by themselves: with statistics over a batch it rests on which rows are scored together, and on
    what stands in them."""
    changes = numbers_of(runs, lambda run, facts: facts.get("other_rows", 0.0))
    mixing = [run for run, change in changes.items() if change > SEES]
    gaps = numbers_of(runs, lambda run, facts: facts.get("batch_gap") or 0.0)
    apart = [run for run, gap in gaps.items() if gap > NATS and run not in mixing]
    sentences = []
    if mixing:
        sentences.append(
            f"Logits of {run_names(mixing)} change with the other rows of a batch (by {max(changes.values()):.0%}), so "
            "that the loss rests on which rows are scored together."
        )
    if apart:
        sentences.append(
            f"Rows have another loss in a batch, as they are scored, than by themselves in {run_names(apart)} (by "
            f"{max(gaps[run] for run in apart):.2g} nats a token)."
        )
    if not sentences:
        return None
    values = values_of(changes if mixing else gaps)
    return Finding("scoring", "violation", " ".join(sentences), run_labels([*mixing, *apart]), values)


def check_documents(runs: Sequence[RunRecord]) -> Finding | None:
    """Documents of a row see only themselves, where a recipe says so."""
    changes = numbers_of(runs, lambda run, facts: facts.get("across_documents") or 0.0)
    seeing = [run for run, change in changes.items() if change > SEES]
    if not seeing:
        return None
    sentence = (
        f"Documents are to be read by themselves (data.isolate_documents), and logits of {run_names(seeing)} change "
        f"with the document before (by {max(changes.values()):.0%})."
    )
    severity: Severity = "violation" if len(seeing) < len(changes) else "note"
    return Finding("scoring", severity, sentence, run_labels(seeing), values_of(changes))
