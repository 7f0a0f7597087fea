"""What no configuration tells of a model, and was measured of it (`hf_arch.training.unseen_parts`): on one side only,
it is what is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_arch.analysis.finding import Finding, Severity
from hf_arch.analysis.question import is_asked
from hf_arch.analysis.run_names import by_name, by_value, listed, run_labels, run_names, values_by_run
from hf_arch.runs.record import RunRecord

UNTRACKED = 0.01
"""Of all parameters: so many numbers that are none and yet learned do not count."""
HOOKED = 0.01
"""How much more of all parameters may have a hook on their gradient on one side than on the other."""
UNTRUE = 3.0
"""Times: a backward pass that leaves out a part of the gradient (a router, a detached state) is often within it."""
FIXED = 0.05
"""Of all parameters: of all architectures only `linear_attn` begins with fixed matrices, its feature maps, 1 % of a
tiny model."""
NOISY, NOISY_IN_HALF = 1e-3, 1e-2
"""Of the rms of logits: below it is rounding, of parameters in fp32, and where some are in bf16 or fp16."""

SETTLED = 0.8
"""What is left of a gap between the modes after passes over one row: 0.67 of it where a hundredth of each is taken into
an average."""
UNDERSTATED = 1.1
"""Times the FLOPs that a cost says, in the products of the cheapest form: at most 1.04 in every architecture here."""
UNCOUNTED_FORM = 4.0
"""The same of whole rows, where tokens one at a time cannot be counted: forms in chunks multiply up to 3.6 times as
much as a recurrence costs (`mamba3`, of all architectures at 48 tokens and their tiny widths, where they do most)."""
TRAINS_MORE = 1.3
"""Times three forward passes, in the products of a step of training: 0.84 to 1.11 in every architecture here."""


def check_products(runs: Sequence[RunRecord]) -> Finding | None:
    """A cost is what a part says of itself; the products that torch counts are what it does."""
    true = numbers_of(runs, _over_its_cost)
    wrong = [run for run, ratio in true.items() if ratio > UNDERSTATED]
    if not wrong:
        return _check_uncounted_forms(runs)
    apart = max(true.values()) / max(min(true.values()), 1.0) > UNDERSTATED
    sentence = (
        f"The cost of {run_names(wrong)} is not what it does: training takes {max(true.values()):.2f} times the FLOPs "
        "that its parts say, in matrix products alone, so that equal FLOPs are not equal."
    )
    return Finding("flops", "violation" if apart else "note", sentence, run_labels(wrong), values_of(true))


def _over_its_cost(run: RunRecord, facts: Mapping[str, Any]) -> float:
    """The products of the cheapest form, and those of a step of training where they are more than three forward passes,
    over the FLOPs that a cost says."""
    trains = float(facts.get("training_products", 1.0))
    return max(float(facts.get("least_products") or 0.0), 1.0) * (trains if trains > TRAINS_MORE else 1.0)


def _check_uncounted_forms(runs: Sequence[RunRecord]) -> Finding | None:
    """Whole rows alone, where a part takes no tokens one at a time; and all that older records have."""
    whole = numbers_of(runs, lambda run, facts: facts.get("products", 0.0))
    beyond = [run for run in whole if whole[run] > UNCOUNTED_FORM and not (run.unseen or {}).get("least_products")]
    refused = [run for run in whole if whole[run] > UNDERSTATED and (run.unseen or {}).get("least_products", 1) is None]
    if not beyond and not refused:
        return _check_uncountable(runs)
    found = beyond or refused
    sentence = (
        f"The cost of {run_names(found)} {'is not' if beyond else 'may not be'} what it does: a row takes "
        f"{max(whole[run] for run in found):.1f} times the FLOPs that its parts say, in matrix products alone. Tokens "
        "one at a time, which tell what a form in chunks adds, were not counted."
    )
    return Finding("flops", "violation" if beyond else "note", sentence, run_labels(found), values_of(whole))


def _check_uncountable(runs: Sequence[RunRecord]) -> Finding | None:
    """Operations that torch's counters refuse: the cost is what the part says."""
    said = {run: str(facts["uncountable"]) for run, facts in _facts(runs).items() if facts.get("uncountable")}
    if not said:
        return None
    sentence = f"Matrix products of {run_names(list(said))} could not be counted, so that its cost is its own word: "
    return Finding("flops", "note", f"{sentence}{next(iter(said.values()))}.", run_labels(said))


def check_untracked(runs: Sequence[RunRecord]) -> Finding | None:
    """Numbers that learn and are no parameters: neither the count of parameters nor matching knows them."""
    shares = numbers_of(runs, lambda run, facts: facts["untracked"] / (run.numbers.get("params_total") or 1))
    many = [run for run, share in shares.items() if share > UNTRACKED]
    if not many or max(shares.values()) - min(shares.values()) <= UNTRACKED:
        return None
    sentence = (
        f"Numbers that are no parameters change in training (buffers, or tensors in attributes), so that they are not "
        f"counted: {max(shares.values()):.0%} of the parameters in {run_names(many)}."
    )
    return Finding("parameters", "violation", sentence, run_labels(many), values_of(shares))


def check_uncounted(runs: Sequence[RunRecord]) -> Finding | None:
    """Parameters that are made in the first forward pass: the cost, which knows the model as it begins, has none of
    them."""
    shares = numbers_of(runs, lambda run, facts: facts.get("uncounted", 0) / (run.numbers.get("params_total") or 1))
    more = [run for run, share in shares.items() if share > UNTRACKED]
    fewer = [run for run, share in shares.items() if share < -UNTRACKED]
    if fewer and not more:
        sentence = f"{-min(shares.values()):.0%} of the parameters that are counted are not in {run_names(fewer)}."
        return Finding("parameters", "violation", sentence, run_labels(fewer), values_of(shares))
    if not more:
        return None
    sentence = (
        f"Parameters that are made while the model runs are not counted: {max(shares.values()):.0%} of the others in "
        f"{run_names(more)}."
    )
    return Finding("parameters", "violation", sentence, run_labels(more), values_of(shares))


def check_gradients(runs: Sequence[RunRecord]) -> Finding | None:
    """Gradients that are not those of the loss, on one side: a backward pass of one's own may give anything."""
    shares = numbers_of(runs, lambda run, facts: _untrue(facts) / (run.numbers.get("params_total") or 1))
    if not shares or max(shares.values()) - min(shares.values()) <= HOOKED:
        return None
    wrong = [run for run, share in shares.items() if share > HOOKED]
    ratios = {place: ratio for run in wrong for place, (ratio, _) in (run.unseen or {})["gradients"].items()}
    place = max(ratios, key=lambda place: max(abs(ratios[place]), 1 / max(abs(ratios[place]), 1e-9)))
    sentence = (
        f"Gradients are not those of the loss, of {max(shares.values()):.0%} of the parameters in {run_names(wrong)}: "
        f"of {place} the loss changes by {ratios[place]:.2g} times what its gradient says."
    )
    return Finding("optimiser", severity_of("optimiser", runs), sentence, run_labels(wrong), values_of(shares))


def _untrue(facts: Mapping[str, Any]) -> float:
    """Numbers whose gradient is more than `UNTRUE` times too large or too small, or of the other sign."""
    found = (facts.get("gradients") or {}).values()
    return float(sum(count for ratio, count in found if not 1 / UNTRUE < ratio < UNTRUE))


def check_gradient_hooks(runs: Sequence[RunRecord]) -> Finding | None:
    """Gradients that are changed before the optimiser sees them."""
    shares = numbers_of(runs, lambda run, facts: facts["gradient_hooks"] / (run.numbers.get("params_total") or 1))
    if not shares or max(shares.values()) - min(shares.values()) <= HOOKED:
        return None
    hooked = [run for run, share in shares.items() if share > HOOKED]
    sentence = (
        f"Hooks change gradients before the optimiser sees them, of {max(shares.values()):.0%} of the parameters in "
        f"{run_names(hooked)}."
    )
    return Finding("optimiser", severity_of("optimiser", runs), sentence, run_labels(hooked), values_of(shares))


def check_types(runs: Sequence[RunRecord]) -> Finding | None:
    """The same types of parameters: what is kept in bf16 is rounded at every step."""
    known = {run: facts["dtypes"] for run, facts in _facts(runs).items()}
    kinds = by_value(list(known), lambda run: ", ".join(sorted(known[run])))
    if len(kinds) < 2:
        return None
    text = "; ".join(f"{types}: {run_names(group)}" for types, group in kinds.items())
    sentence = f"Types of parameters differ: {text}."
    return Finding("precision", severity_of("precision", runs), sentence, run_labels(known), values_by_run(kinds))


def check_modes(runs: Sequence[RunRecord]) -> Finding | None:
    """A model that is noisy in training, or computes something else when it is scored, where the other does not."""
    noise = numbers_of(runs, lambda run, facts: facts["noise"])
    noisy = [run for run, size in noise.items() if size > _rounding(run)]
    if noisy and len(noisy) < len(noise):
        sentence = (
            f"Only {run_names(noisy)} {'is' if len(noisy) == 1 else 'are'} noisy in training (dropout of its own, or "
            f"noise that is added): two passes differ by {max(noise.values()):.0%} of the logits."
        )
        return Finding("dropout", severity_of("dropout", runs), sentence, run_labels(noisy), values_of(noise))
    gaps = numbers_of(runs, lambda run, facts: facts["mode_gap"])
    other = [run for run, size in gaps.items() if size > _rounding(run)]
    if noisy or not other:
        return None
    sentence = (
        "Scored as another model than was trained (averages of weights or of a batch's statistics, branches left out, "
        "several passes or another context in evaluation mode): logits of "
        f"{run_names(other)} differ by {max(gaps.values()):.0%} between the modes."
    )
    severity: Severity = "violation" if len(other) < len(gaps) and any(map(_is_another, other)) else "note"
    return Finding("scoring", severity, sentence, run_labels(other), values_of(gaps))


def _is_another(run: RunRecord) -> bool:
    """Whether a run may hold averages of weights besides them (tensors as large, or what a new model has not), or
    differs between the modes by more than statistics that follow a batch."""
    facts = run.unseen or {}
    many = facts.get("untracked", 0) > UNTRACKED * (run.numbers.get("params_total") or 1)
    outside = facts.get("reloaded") is None or facts["reloaded"] > _rounding(run)
    settled = facts.get("settled_gap")
    return many or outside or (settled is not None and settled > SETTLED * facts["mode_gap"])


OUTSIDE = {
    "reloaded": ("scoring", "rest on what is in no weights: a new model with the same ones gives others"),
    "clock": ("scoring", "change with the time of day"),
    "counts": ("schedule", "change with a count of steps, a schedule of its own"),
}
"""{fact: (check, what it says of logits)} of what a model computes by more than its weights."""


def check_outside(runs: Sequence[RunRecord]) -> Finding | None:
    """What a model computes is in its weights: not in a count of steps, in the time, or where nothing saves it."""
    for fact, (check, words) in OUTSIDE.items():
        gaps = numbers_of(runs, lambda run, facts: facts.get(fact) or 0.0)  # noqa: B023
        other = [run for run, gap in gaps.items() if gap > _rounding(run)]
        if other:
            sentence = f"Logits of {run_names(other)} {words} (by {max(gaps.values()):.0%})."
            everywhere = len(other) == len(gaps) and fact != "clock"  # no two runs have one time
            severity = "note" if everywhere else severity_of(check, runs)
            return Finding(check, severity, sentence, run_labels(other), values_of(gaps))
    return None


def check_starts(runs: Sequence[RunRecord]) -> Finding | None:
    """Matrices that begin with the same values under every seed, on one side: loaded, and not drawn."""
    fixed = {name: _fixed(group) for name, group in by_name(list(_facts(runs))).items()}
    shares = {name: sum(count for count, _ in parts.values()) for name, parts in fixed.items()}
    loaded = [name for name, share in shares.items() if share > FIXED]
    hashes = {tuple(sorted((place, found) for place, (_, found) in parts.items())) for parts in fixed.values()}
    if not loaded or len(hashes) == 1:
        return None
    part = max(fixed[loaded[0]], key=lambda place: fixed[loaded[0]][place])
    sentence = (
        f"Weights of {listed(loaded)} are the same under every seed before the first step, {max(shares.values()):.0%} "
        f"of the parameters ({part}): they were loaded and not drawn, or drawn once."
    )
    concerned = [run for run in runs if run.name in loaded]
    return Finding("initialisation", severity_of("initialisation", runs), sentence, run_labels(concerned), dict(shares))


def _fixed(group: Sequence[RunRecord]) -> dict[str, tuple[float, str]]:
    """{matrix: (share of the parameters, hash)} of those that several seeds of one run begin with alike."""
    starts = {run.seed: (run.unseen or {}).get("starts") or {} for run in group}
    if len(starts) < 2:
        return {}
    first, total = next(iter(starts.values())), group[0].numbers.get("params_total") or 1
    return {
        place: (found[1] / total, str(found[0]))
        for place, found in first.items()
        if all((other.get(place) or [None])[0] == found[0] for other in starts.values())
    }


def check_replaced(runs: Sequence[RunRecord]) -> Finding | None:
    """The same functions, constants and callbacks, whatever plugins put in their place."""
    known = {run: _replaced(run) for run in runs if run.completed and "replaced" in run.provenance}
    kinds = by_value(list(known), lambda run: known[run])
    if len(kinds) < 2:
        return _check_left_over({run: tuple(map(str, run.provenance["replaced"] or ())) for run in known})
    common = set.intersection(*(set(names) for names in known.values()))
    text = "; ".join(
        f"{listed([name for name in names if name not in common]) or 'nothing'}: {run_names(group)}"
        for names, group in kinds.items()
    )
    sentence = f"Plugins replace or add parts of the program itself: {text}."
    return Finding(
        "code", "violation", sentence, run_labels(known), {r.label: list(names) for r, names in known.items()}
    )


def _check_left_over(replaced: Mapping[RunRecord, tuple[str, ...]]) -> Finding | None:
    """What a plugin replaced stays so for later runs of its process, also of those that do not use it, in which it may
    act otherwise."""
    plugins = {run: set(run.provenance.get("plugins") or ()) for run, names in replaced.items() if names}
    if not any(plugins.values()) or set.intersection(*plugins.values()):
        return None
    groups = by_value(list(plugins), lambda run: tuple(sorted(plugins[run])))
    text = "; ".join(f"{listed(names) or 'none'}: {run_names(group)}" for names, group in groups.items())
    sentence = (
        f"Parts of the program were replaced ({listed(next(iter(replaced.values())))}) in runs that share no plugin "
        f"({text}): what one replaced was left to later runs of its process."
    )
    return Finding("code", "violation", sentence, run_labels(plugins), {r.label: sorted(p) for r, p in plugins.items()})


def _rounding(run: RunRecord) -> float:
    types = (run.unseen or {}).get("dtypes") or {}
    return NOISY_IN_HALF if {"bfloat16", "float16"} & set(types) else NOISY


def _replaced(run: RunRecord) -> tuple[str, ...]:
    facts = run.unseen or {}
    callbacks = [f"callback {name}" for name in facts.get("callbacks") or ()]
    return (*map(str, run.provenance.get("replaced") or ()), *map(str, facts.get("attached") or ()), *callbacks)


def _facts(runs: Sequence[RunRecord]) -> dict[RunRecord, Mapping[str, Any]]:
    return {run: run.unseen for run in runs if run.completed and run.unseen}


def numbers_of(
    runs: Sequence[RunRecord], value_of: Callable[[RunRecord, Mapping[str, Any]], float]
) -> dict[RunRecord, float]:
    """A number of what was measured of each run."""
    return {run: float(value_of(run, facts)) for run, facts in _facts(runs).items()}


def values_of(numbers: Mapping[RunRecord, float]) -> dict[str, float]:
    """The same by label, for a finding."""
    return {run.label: value for run, value in numbers.items()}


def severity_of(check: str, runs: Sequence[RunRecord]) -> Severity:
    """Of a difference that these runs may ask about."""
    return "note" if is_asked(check, runs) else "violation"
