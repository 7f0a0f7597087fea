"""What models differ in besides the mixer: initial scale, convolutions, initialisation, dropout, tying, kernels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, zip_longest
from math import log
from statistics import fmean

from hf_arch.analysis.audits.keys import differing, settings_of, values_apart
from hf_arch.analysis.finding import Finding, Severity, not_recorded
from hf_arch.analysis.question import is_asked
from hf_arch.analysis.run_names import by_name, by_value, run_labels, run_names, values_by_run
from hf_arch.core.formats import factor
from hf_arch.runs.limits import BRANCH_GAIN, BRANCH_RATIO
from hf_arch.runs.record import RunRecord
from hf_arch.runs.run_settings import has_short_convolution

FLOOR = 1e-4
"""Of the stream: a branch below it counts as so large, since a ratio to nothing says nothing."""
KNOWS = 0.5
"""Nats a token below ln V: no untrained model is so much better than a guess."""
SEES = 0.01
"""Of the rms of logits: what later tokens, or a score, change beyond it is no rounding."""


def check_branch_scale(runs: Sequence[RunRecord]) -> Finding | None:
    """What each sublayer writes, over the residual stream that it writes to, before the first step."""
    measured = by_name([run for run in runs if run.branch_scale])
    missing = [run for run in runs if not run.branch_scale and run.completed]
    found = [
        (gap, site, small, large)
        for site in ("mixer", "ffn")
        for small in measured
        for large in measured
        if small != large and (gap := _site_gap(measured[small], measured[large], site)) is not None
    ]
    (ratio, layer, *scales), site, small, large = max(found, default=((1.0, 0, 0.0, 0.0), "mixer", "", ""))
    unseen = f" Not measured for {run_names(missing)}." if missing else ""
    if ratio <= BRANCH_RATIO:
        if missing:
            sentence = f"Branch scale: not measured before training for {run_names(missing)}."
            return Finding("branch scale", "note", sentence, run_labels(missing))
        if not found:
            return None
        sentence = f"Branch scale at initialisation within a factor of {ratio:.2g} (limit {BRANCH_RATIO:g})."
        return Finding("branch scale", "ok", sentence, run_labels(runs), {"ratio": ratio, "site": site})
    where = "mixers" if site == "mixer" else "feed-forwards"
    by = f" by a factor of {factor(ratio)}" if scales[0] >= FLOOR else ""
    sentence = (
        f"Branch scale at initialisation differs{by}: {where} write {scales[0]:.2g} of the residual stream in {small}, "
        f"{scales[1]:.2g} in {large} (layer {layer}, where they are farthest apart).{unseen}"
    )
    values = {"ratio": ratio, "site": site, "layer": layer, small: scales[0], large: scales[1]}
    severity: Severity = "note" if is_asked("branch scale", runs) else "violation"
    return Finding("branch scale", severity, sentence, run_labels(runs), values)


def check_branch_gain(runs: Sequence[RunRecord]) -> Finding | None:
    """A factor that stays on a branch (`model.branch_scales`, of a control too) multiplies also what each step of the
    optimiser changes in what it writes."""
    gains = {run.name: factors for run in runs if (factors := _gains(run))}
    others = [run.name for run in runs if run.config and run.name not in gains]
    pairs = list(combinations(gains, 2)) + [(name, other) for name in gains for other in dict.fromkeys(others)]
    found = [(_largest_gain(gains[a], gains.get(b, [])), a, b) for a, b in pairs]
    gain, one, other = max(found, default=(1.0, "", ""))
    if gain <= BRANCH_GAIN:
        return None
    sentence = (
        f"A branch of {one} is multiplied by {gain:.3g} times what it is in {other}, or divided by it, throughout "
        "training, and so is what a step of the optimiser changes in it."
    )
    severity: Severity = "note" if is_asked("branch scale", runs) else "violation"
    return Finding("branch gain", severity, sentence, run_labels(runs), {"gain": gain, **gains})


def _gains(run: RunRecord) -> list[float]:
    """The factors of all branches in order; [] where they have none."""
    scales = (run.config.get("model") or {}).get("branch_scales")
    return [float(factor) for layer in scales for factor in layer] if isinstance(scales, list) else []


def _largest_gain(first: Sequence[float], second: Sequence[float]) -> float:
    pairs = zip_longest(first, second, fillvalue=1.0)
    return max((max(a / b, b / a) for a, b in pairs if a > 0 and b > 0), default=1.0)


Gap = tuple[float, int, float, float]
"""A ratio of two sides, the layer (from 1, of the deeper one), and what each writes of its stream there."""


def _site_gap(small: Sequence[RunRecord], large: Sequence[RunRecord], site: str) -> Gap | None:
    """The largest ratio, over every pair of runs, of a layer of one side to that at the same depth of the other; None
    where a side has no such branch."""
    gaps = [_layer_gap(_layers(first, site), _layers(second, site)) for first in small for second in large]
    return max((gap for gap in gaps if gap is not None), default=None)


def _layers(run: RunRecord, site: str) -> list[float | None]:
    return list((run.branch_scale or {}).get(site) or ())


def _layer_gap(first: Sequence[float | None], second: Sequence[float | None]) -> Gap | None:
    """The largest ratio of a layer of the second to the first's at the same share of the depth; every layer of both is
    looked at."""
    depth = max(len(first), len(second))
    gaps = [
        (max(b, FLOOR) / max(a, FLOOR), index + 1, a, b)
        for index in range(depth if first and second else 0)
        if (a := first[index * len(first) // depth]) is not None
        and (b := second[index * len(second) // depth]) is not None
    ]
    return max(gaps, key=lambda gap: gap[0], default=None)


def check_short_convolution(runs: Sequence[RunRecord]) -> Finding:
    """A short convolution gives any mixer local context: on one side only, it is what is compared, not the mixer."""
    seen = [run for run in runs if run.completed or run.short_convolution is not None]
    has = by_value(seen or runs, has_short_convolution)
    values = {run.label: run.short_convolution for run in runs if run.short_convolution is not None}
    shares = by_value([run for run in runs if run.short_convolution is not None], _convolved_share)
    if len(has) == 1 and True in has and len(shares) > 1:
        text = "; ".join(f"{share:.0%} of the layers: {run_names(group)}" for share, group in shares.items())
        severity: Severity = "note" if is_asked("short convolution", runs) else "violation"
        return Finding("short convolution", severity, f"Short convolutions differ: {text}.", run_labels(runs), values)
    if len(has) == 1:
        text = "every architecture has" if True in has else "no architecture has"
        if unseen := [run for run in runs if run.short_convolution is None and run.completed]:
            text += f" one by its options ({run_names(unseen)}: modules not looked at)"
            return Finding("short convolution", "ok", f"Short convolution: {text}.", run_labels(runs), values)
        return Finding("short convolution", "ok", f"Short convolution: {text} one.", run_labels(runs), values)
    sentence = f"Short convolution on one side only: with {run_names(has[True])}; without {run_names(has[False])}."
    asked: Severity = "note" if is_asked("short convolution", runs) else "violation"
    return Finding("short convolution", asked, sentence, run_labels(has[True]), values)


def _convolved_share(run: RunRecord) -> float:
    """The share of the layers that have a short convolution."""
    layers = len((run.branch_scale or {}).get("mixer") or ()) or 1
    return min(1.0, len((run.short_convolution or {}).get("layers") or ()) / layers)


def check_init(runs: Sequence[RunRecord]) -> Finding:
    """Initialisation changed by hand decides rankings; said even where every run did it."""
    overridden = [run for run in runs if run.init_overridden]
    if unknown := [run for run in runs if run.init_overridden is None and run.completed]:
        return not_recorded("initialisation", "init_overridden", unknown)
    settings = settings_of("initialisation", runs)
    if found := differing(settings):
        severity: Severity = "note" if is_asked("initialisation", runs) else "violation"
        values = values_apart(settings)
        return Finding("initialisation", severity, f"Initialisation differs: {found}.", run_labels(runs), values)
    if warm := [run for run in runs if _knows(run)]:
        sentence = (
            f"Weights that have learned: {run_names(warm)} {'begins' if len(warm) == 1 else 'begin'} at a loss of "
            f"{fmean(run.initial_loss or 0.0 for run in warm):.3g}, which no weights drawn at random have."
        )
        cold = any(run.initial_loss is not None for run in runs if run not in warm)
        losses = {run.label: run.initial_loss for run in runs}
        return Finding("initialisation", "violation" if cold else "note", sentence, run_labels(warm), losses)
    if not overridden:
        rules = by_value(runs, lambda run: str(run.components.get("init", "its own")))
        text = "; ".join(f"{rule}: {run_names(group)}" for rule, group in rules.items())
        sentence = f"Initialisation: every architecture uses its own default{f' ({text})' if len(rules) > 1 else ''}."
        return Finding("initialisation", "ok", sentence, run_labels(runs))
    everywhere = len(overridden) == len(runs)
    sentence = f"Initialisation overridden in {'every run' if everywhere else run_names(overridden)}."
    fair = everywhere or is_asked("initialisation", runs)
    by_hand = {run.label: bool(run.init_overridden) for run in runs}
    return Finding("initialisation", "note" if fair else "violation", sentence, run_labels(overridden), by_hand)


def _knows(run: RunRecord) -> bool:
    """Whether a run began with less than the loss of a guess among all tokens, ln V."""
    vocabulary = (run.experiment.get("config") or {}).get("vocab_size")
    if run.initial_loss is None or not isinstance(vocabulary, int) or vocabulary < 2:
        return False
    return run.initial_loss < log(vocabulary) - KNOWS


def check_dropout(runs: Sequence[RunRecord]) -> Finding | None:
    """The same dropout: architectures have different defaults, and on a small corpus these decide."""
    rates = by_value([run for run in runs if "dropout" in run.components], lambda run: str(run.components["dropout"]))
    settings = settings_of("dropout", runs)
    text, values = differing(settings), values_apart(settings)
    if len(rates) > 1:
        values = values_by_run(rates)
        text = "; ".join(f"{rate}: {run_names(group)}" for rate, group in rates.items())
    if not text:
        return Finding("dropout", "ok", f"Same dropout: {next(iter(rates))}.", run_labels(runs)) if rates else None
    severity: Severity = "note" if is_asked("dropout", runs) else "violation"
    return Finding("dropout", severity, f"Dropout differs: {text}.", run_labels(runs), values)


def check_tying(runs: Sequence[RunRecord]) -> Finding | None:
    """Head and embedding tied on all sides or on none."""
    known = [run for run in runs if isinstance(run.experiment.get("config"), dict)]
    tied = by_value(known, lambda run: bool(run.experiment["config"].get("tie_word_embeddings")))
    settings = settings_of("tying", [run for run in runs if run not in known])
    found = differing(settings)
    if len(tied) < 2 and not found:
        return Finding("tying", "ok", "Same tying of head and embedding.", run_labels(known)) if known else None
    severity: Severity = "note" if is_asked("tying", runs) else "violation"
    sentence = f"Tying of head and embedding differs: {found}."
    if len(tied) > 1:
        sentence = f"Head tied to the embedding in {run_names(tied[True])}; not in {run_names(tied[False])}."
    return Finding("tying", severity, sentence, run_labels(runs), values_by_run(tied) | values_apart(settings))


def check_kernels(runs: Sequence[RunRecord]) -> Finding | None:
    """The same kind of kernels (torch, or flash-linear-attention's and flash attention): they round differently. The
    C kernels differ from torch by the order of fp32 sums alone, as two processors do."""
    known = by_value([run for run in runs if run.kernels is not None], lambda run: run.kernels)
    if len(known) < 2:
        return None
    text = "; ".join(f"{kernels}: {run_names(group)}" for kernels, group in known.items())
    severity: Severity = "note" if known.keys() <= {"torch", "compiled C"} else "violation"
    return Finding("kernels", severity, f"Kernels differ: {text}.", run_labels(runs), values_by_run(known))


def check_scoring(runs: Sequence[RunRecord]) -> Finding | None:
    """A loss is that of a next token only where the model does not see it, and is not changed by being scored."""
    sees = [run for run in runs if run.completed and (run.later_tokens or 0.0) > SEES]
    changed = [run for run in runs if run.completed and (run.scoring_drift or 0.0) > SEES]
    said = []
    if sees:
        said.append(
            f"The logits of {run_names(sees)} change with tokens that come later, so that the loss is not one of "
            "a next token"
        )
    if changed:
        said.append(f"Scoring changed {run_names(changed)}: one row has other logits after it than before")
    if not said:
        measured = [run for run in runs if run.completed and run.later_tokens is not None]
        sentence = "What models predict rests on no later token, and scoring changed none of them."
        return Finding("scoring", "ok", sentence, run_labels(measured)) if measured else None
    values = {
        run.label: {"later_tokens": run.later_tokens, "scoring_drift": run.scoring_drift} for run in {*sees, *changed}
    }
    return Finding("scoring", "violation", f"{'. '.join(said)}.", run_labels([*sees, *changed]), values)
