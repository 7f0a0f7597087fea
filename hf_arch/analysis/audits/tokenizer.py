"""Questions about the tokenizer itself: the same text, the same bytes learned from, the same held-out bytes scored, and
bits per byte.

Tokens, rows, their order and the size of the embedding follow the tokenizer, so runs that ask about it
(`question.asks_tokenizer`) are compared by what does not: the text that they read and were scored on
(`RunRecord.text_bytes`). Anything else that differs confounds as it does elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hf_arch.analysis.finding import Finding, not_recorded, same_fingerprint
from hf_arch.analysis.question import TOKENIZER_METRICS, asks_tokenizer
from hf_arch.analysis.run_names import by_value, run_labels, run_names, values_by_run
from hf_arch.runs.record import RunRecord

TOLERANCE = 0.02
"""Of the bytes: whole steps and whole rows leave a little over."""


def check_tokenizer(runs: Sequence[RunRecord]) -> Finding:
    """The same tokenizer: losses in nats per token mean nothing across two of them (bits per byte still do)."""
    if not asks_tokenizer(runs):
        return same_fingerprint(runs, "tokenizer")
    kinds = by_value([run for run in runs if run.completed], lambda run: run.tokenizer_fingerprint)
    text = "; ".join(f"{str(value)[:12]}: {run_names(group)}" for value, group in kinds.items())
    context = {run.name: _bytes_a_token(run, "seen", run.numbers.get("tokens_seen")) for run in runs if run.completed}
    shares = ", ".join(f"{name} {share:.2f}" for name, share in context.items() if share)
    sentence = f"The tokenizer is the question ({text}): compared by bits per byte, at equal bytes of one text"
    sentence += f"; a row of so many tokens is of different length (bytes a token: {shares})" if shares else ""
    return Finding("tokenizer", "note", f"{sentence}.", run_labels(runs), context)


def other_measure(runs: Sequence[RunRecord], metric: str) -> list[Finding]:
    """A finding where runs of several tokenizers are judged by what is counted in their tokens."""
    kinds = {run.tokenizer_fingerprint for run in runs if run.completed and run.tokenizer_fingerprint}
    if len(kinds) < 2 or not asks_tokenizer(runs) or metric in TOKENIZER_METRICS:
        return []
    sentence = (
        f"{metric} is not comparable between tokenizers, whose tokens are of different length: judge by "
        f"{TOKENIZER_METRICS[0]} (`experiment.metric`, or `--metric`)."
    )
    values = {run.label: run.tokenizer_fingerprint for run in runs if run.completed}
    return [Finding("tokenizer", "violation", sentence, run_labels(runs), values)]


def same_bytes_seen(runs: Sequence[RunRecord]) -> Finding:
    """The same bytes in training, in place of the same tokens."""
    return _same_bytes(
        "tokens", runs, "seen", "bytes of text in training", lambda run: (run.text_bytes or {}).get("seen")
    )


def same_bytes_scored(runs: Sequence[RunRecord]) -> Finding:
    """All held-out text scored on every side, in place of the same rows: a part of the rows is other text for each."""
    parts = {run: run.config.get("evaluation") or {} for run in runs if run.completed}
    cut = [run for run, part in parts.items() if part.get("rows", "all") != "all"]
    cut += [
        run for run in parts if run not in cut and (share := _share_scored(run)) is not None and share < 1 - TOLERANCE
    ]
    if cut:
        sentence = (
            f"A part of the held-out rows is other text for each tokenizer, and {run_names(cut)} "
            f"{'is' if len({run.name for run in cut}) == 1 else 'are'} scored on a part: score all (evaluation.rows: "
            "all, no final_sequences)."
        )
        return Finding("rows", "violation", sentence, run_labels(cut), {run.label: _share_scored(run) for run in cut})
    return _same_bytes(
        "rows", runs, "scored", "bytes of held-out text scored", lambda run: (run.text_bytes or {}).get("scored")
    )


def same_text(runs: Sequence[RunRecord]) -> Finding:
    """The same text, by its bytes, in place of the same tokens."""
    if missing := [run for run in runs if run.completed and not (run.text_bytes or {}).get("fingerprint")]:
        return _unknown("data", missing)
    texts = by_value([run for run in runs if run.completed], lambda run: (run.text_bytes or {}).get("fingerprint"))
    if len(texts) < 2:
        return Finding("data", "ok", f"Same text (fingerprint {next(iter(texts), '')}).", run_labels(runs))
    text = "; ".join(f"{value}: {run_names(group)}" for value, group in texts.items())
    sentence = f"The text itself differs: {text}."
    return Finding("data", "violation", sentence, run_labels(runs), values_by_run(texts))


def order_of_tokens(runs: Sequence[RunRecord]) -> Finding:
    """Rows end elsewhere for each tokenizer, so that no order is the same."""
    sentence = (
        "Data order follows the rows, which end elsewhere for each tokenizer: runs of one seed do not share it, and "
        "differences are noisier for that."
    )
    return Finding("order", "note", sentence, run_labels(runs))


def _same_bytes(
    check: str, runs: Sequence[RunRecord], key: str, what: str, value_of: Callable[[RunRecord], Any]
) -> Finding:
    counted = {run: value_of(run) for run in runs if run.completed}
    if missing := [run for run, value in counted.items() if not value]:
        return _unknown(check, missing)
    least, most = min(counted.values()), max(counted.values())
    values = {run.label: value for run, value in counted.items()}
    if most <= least * (1 + TOLERANCE):
        return Finding(check, "ok", f"Same {what} within {most / least - 1:.1%}.", run_labels(runs), values)
    by_name = by_value(counted, lambda run: f"{counted[run]:,.0f}")
    text = "; ".join(f"{value}: {run_names(group)}" for value, group in by_name.items())
    advice = ", so give each its own training.max_steps" if key == "seen" else ""
    sentence = f"The {what} differ by {most / least - 1:.1%} (limit {TOLERANCE:.0%}){advice}: {text}."
    return Finding(check, "violation", sentence, run_labels(runs), values)


def _unknown(check: str, runs: Sequence[RunRecord]) -> Finding:
    """A violation, and no note: what runs of one tokenizer would be compared by cannot stand in for it."""
    found = not_recorded(check, "text_bytes (not of mixtures)", runs)
    return Finding(check, "violation", found.sentence, found.runs)


def _share_scored(run: RunRecord) -> float | None:
    scored, whole = ((run.text_bytes or {}).get(key) for key in ("scored", "held_out"))
    return scored / whole if scored and whole else None


def _bytes_a_token(run: RunRecord, key: str, tokens: float | None) -> float | None:
    found = (run.text_bytes or {}).get(key)
    return found / tokens if found and tokens else None
