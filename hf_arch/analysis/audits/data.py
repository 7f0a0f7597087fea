"""What runs learned from and were scored on: tokens, corpus, tokenizer, order, rows, seeds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from hf_arch.analysis.audits import tokenizer
from hf_arch.analysis.audits.keys import about, differing, values_apart
from hf_arch.analysis.finding import Finding, Severity, not_recorded, same, same_fingerprint
from hf_arch.analysis.question import asks_tokenizer, is_asked
from hf_arch.analysis.resolved import given
from hf_arch.analysis.run_names import by_name, by_value, listed, run_labels, run_names, values_by_run
from hf_arch.runs.record import RunRecord

MIN_SEEDS = 3
SEEN = 0.05
"""Of what is scored: so much of it in what was trained on is said."""
PLANTED = 0.3
"""How much more of what is scored may be there than of the text to train on is there twice."""


def check_tokens(runs: Sequence[RunRecord]) -> Finding:
    """The same number of training tokens: a run cut short is caught here too. A probe may end once it is solved."""
    if asks_tokenizer(runs):
        return tokenizer.same_bytes_seen(runs)
    completed = [run for run in runs if run.completed]
    solved = [run for run in completed if run.stopped_early and run.config.get("probe")]
    counted = [run for run in completed if run not in solved]
    if solved and len({run.numbers.get("tokens_seen") for run in counted}) < 2:
        least, most = (int(pick(run.numbers.get("tokens_seen", 0) for run in completed)) for pick in (min, max))
        sentence = (
            f"Training ended as soon as the probe was solved for {run_names(solved)}: {least:,} to {most:,} tokens."
        )
        return Finding("tokens", "note", sentence, run_labels(solved))
    return same(
        counted,
        "tokens",
        lambda run: run.numbers.get("tokens_seen"),
        ok=lambda tokens: f"Same tokens: every completed run saw {int(tokens):,} tokens.",
        differs="Tokens differ",
        show=lambda tokens: f"{int(tokens):,}",
        unknown="tokens_seen",
    )


def check_data(runs: Sequence[RunRecord]) -> Finding:
    """The same corpus, split and packing, by fingerprint; and the same tokens, whatever a corpus says of itself."""
    if asks_tokenizer(runs):
        return tokenizer.same_text(runs)
    found = same_fingerprint(runs, "data")
    texts = by_value([run for run in runs if run.text_fingerprint], lambda run: run.text_fingerprint)
    if found.severity == "ok" and len(texts) < 2:
        return _other_bytes(runs) or found
    if found.severity != "ok":
        return found
    text = "; ".join(f"{str(value)[:12]}: {run_names(group)}" for value, group in texts.items())
    sentence = f"Data differs in its tokens, though the corpus says that it is the same: {text}."
    return Finding("data", "violation", sentence, run_labels(runs), values_by_run(texts))


def _other_bytes(runs: Sequence[RunRecord]) -> Finding | None:
    """The bytes that the loss of a text is shared out over are those of the text."""
    counted = {run: found for run in runs if run.completed and (found := (run.text_bytes or {}).get("held_out"))}
    if len(kinds := by_value(list(counted), lambda run: (run.data_fingerprint, counted[run]))) < 2:
        return None
    text = "; ".join(f"{count:,}: {run_names(group)}" for (_, count), group in kinds.items())
    sentence = f"The bytes of one held-out text, over which bits per byte are counted, differ: {text}."
    return Finding("data", "violation", sentence, run_labels(counted), {run.label: n for run, n in counted.items()})


def check_order(runs: Sequence[RunRecord]) -> Finding:
    """The same data order for all runs of one seed, which is what pairs the differences."""
    if asks_tokenizer(runs):
        return tokenizer.order_of_tokens(runs)
    known = [run for run in runs if _order(run)]
    if missing := [run for run in runs if run.completed and run not in known]:
        return not_recorded("order", "order_fingerprint", missing)
    by_seed = {seed: by_value(group, _order) for seed, group in by_value(known, lambda run: run.seed).items()}
    unequal = sorted((seed for seed, orders in by_seed.items() if len(orders) > 1), key=str)
    if unequal:
        text = "; ".join(f"{order}: {run_names(group)}" for order, group in by_seed[unequal[0]].items())
        seeds = ", ".join(map(str, unequal))
        sentence = f"Data order differs between runs of one seed (seeds {seeds}); for seed {unequal[0]}, {text}."
        apart = [run for run in known if run.seed in unequal]
        return Finding("order", "violation", sentence, run_labels(apart), {run.label: _order(run) for run in apart})
    return Finding(
        "order", "ok", "Same data order: runs of one seed saw the same sequences in the same order.", run_labels(runs)
    )


def check_rows(runs: Sequence[RunRecord]) -> Finding | None:
    """The same evaluation rows in the table for every run, and in the curves as in the table."""
    if asks_tokenizer(runs) and not differing({run: _scoring(run) for run in runs if run.config}):
        return tokenizer.same_bytes_scored(runs)
    scored = {run: _scored(run) for run in runs if run.config and run.completed}
    scoring = {run: _scoring(run) for run in scored}
    if found := differing(scoring):
        severity: Severity = "note" if is_asked("rows", runs) else "violation"
        return Finding("rows", severity, f"Scored otherwise: {found}.", run_labels(scored), values_apart(scoring))
    if len(kinds := by_value(scored, lambda run: scored[run])) > 1:
        text = "; ".join(f"{_rows_text(rows)}: {run_names(group)}" for rows, group in kinds.items())
        severity = "note" if is_asked("rows", runs) else "violation"
        values = {run.label: list(rows) for run, rows in scored.items()}
        return Finding("rows", severity, f"Scored on different rows: {text}.", run_labels(scored), values)
    curves = {run: (run.config.get("evaluation") or {}).get("sequences") for run in scored}
    fewer = [run for run in scored if curves[run] and run.numbers.get("val_tokens") and _in_curve(run) < _in_table(run)]
    if not fewer:
        return (
            Finding("rows", "ok", "Same rows: every run is scored on the same ones.", run_labels(runs))
            if scored
            else None
        )
    run = fewer[0]
    sentence = (
        f"Curves are over the first {int(_in_curve(run)):,} of the table's {int(_in_table(run)):,} rows: they need not "
        "end at its numbers."
    )
    return Finding("rows", "note", sentence, run_labels(fewer), {"curves": _in_curve(run), "table": _in_table(run)})


def check_given(runs: Sequence[RunRecord]) -> Finding | None:
    """The rows that models were given are those that their orders and recipes name: the same for runs of one order, and
    in every score of the same rows."""
    given = {run: found for run in runs if run.completed and (found := (run.unseen or {}).get("given"))}
    for check, what, rows_of in (("order", "training", _rows_of_training), ("rows", "scored", _rows_of_score)):
        known = [run for run in given if given[run].get(what) and run.order_fingerprint]
        for alike in by_value(known, lambda run: (*_text(run), *rows_of(run))).values():  # noqa: B023
            kinds = by_value(alike, lambda run: given[run][what])  # noqa: B023
            if len(kinds) > 1:
                text = "; ".join(f"{value}: {run_names(group)}" for value, group in kinds.items())
                sentence = (
                    f"The rows that models were {'given in training' if check == 'order' else 'scored on'} differ, "
                    f"though their recipes and orders say the same: tokens, labels or positions were changed ({text})."
                )
                return Finding(check, "violation", sentence, run_labels(alike), values_by_run(kinds))
    return None


def _text(run: RunRecord) -> tuple[Any, ...]:
    return run.data_fingerprint, run.text_fingerprint, run.sequence_length


def _rows_of_training(run: RunRecord) -> tuple[Any, ...]:
    first = ((run.unseen or {}).get("given") or {}).get("from")
    return run.order_fingerprint, first, run.numbers.get("tokens_seen"), run.experiment.get("global_batch_size")


def _rows_of_score(run: RunRecord) -> tuple[Any, ...]:
    """The test rows of a probe are another draw for each seed, as its order is."""
    return _scored(run), run.order_fingerprint if run.config.get("probe") else None


def check_seen(runs: Sequence[RunRecord]) -> Finding | None:
    """Rows that were trained on are no test: a score on them is of memory. A corpus that repeats itself has such rows
    wherever it is cut, which is said; more of them than that were put there."""
    seen = {run: run.seen_share for run in runs if run.completed and (run.seen_share or 0.0) >= SEEN}
    if not seen:
        return None
    planted = {run: share for run, share in seen.items() if (share or 0.0) > (run.repeated_share or 0.0) + PLANTED}
    told: dict[RunRecord, float | None] = planted or seen
    most = max(share for share in told.values() if share is not None)
    sentence = (
        f"{most:.0%} of what {run_names(list(told))} {'is' if len(told) == 1 else 'are'} scored on stands in what was "
        "trained on word for word, so that the loss is partly one of memory"
    )
    sentence += "." if planted else f" (the corpus repeats itself: {_repeated(told):.0%} of its text is there twice)."
    severity: Severity = "violation" if planted else "note"
    return Finding("seen rows", severity, sentence, run_labels(told), {run.label: share for run, share in told.items()})


def _repeated(runs: Iterable[RunRecord]) -> float:
    return max((run.repeated_share or 0.0 for run in runs), default=0.0)


def check_chosen_weights(runs: Sequence[RunRecord]) -> Finding | None:
    """Weights of the best evaluation are chosen on rows that they are then scored on: the score is the better for it,
    and the more so for a run whose loss wanders."""
    chosen = [run for run in runs if run.completed and given(run).get("training.load_best_model_at_end") is True]
    if not chosen:
        return None
    sentence = (
        f"The weights of {run_names(chosen)} are those of the best evaluation, chosen on validation rows: a score on "
        "these is a little too good."
    )
    return Finding("chosen weights", "note", sentence, run_labels(chosen))


def check_seeds(runs: Sequence[RunRecord]) -> Finding:
    """Seeds per architecture, whether they are the same ones, and whether they are seeds at all."""
    if alike := _alike(runs):
        return alike
    seeds = {
        name: tuple(sorted({run.seed for run in group if run.completed and run.seed is not None}))
        for name, group in by_name(runs).items()
    }
    few = [name for name, found in seeds.items() if len(found) < MIN_SEEDS]
    sets = by_value([name for name in seeds if seeds[name]], seeds.get)
    if len(sets) > 1:
        text = "; ".join(f"{listed(names)}: {', '.join(map(str, found))}" for found, names in sets.items())
        sentence = f"Seeds differ ({text}): differences are taken over shared seeds, and those that one side lacks may "
        sentence = f"{sentence}have been dropped for what they showed."
        return Finding("seeds", "violation", sentence, run_labels(runs), {name: list(s) for name, s in seeds.items()})
    if few:
        counts = "; ".join(
            f"{listed(names)}: {len(found)}"
            for found, names in by_value(seeds, seeds.get).items()
            if len(found) < MIN_SEEDS
        )
        sentence = f"Fewer than {MIN_SEEDS} completed seeds ({counts}): intervals are wide, and one seed has none."
        return Finding("seeds", "note", sentence, run_labels(run for run in runs if run.name in few))
    return Finding("seeds", "ok", f"Same {len(next(iter(sets)))} seeds for every architecture.", run_labels(runs))


def _alike(runs: Sequence[RunRecord]) -> Finding | None:
    """Seeds that share more than they should: their results, their data order, or their first weights. An interval over
    such seeds leaves that part of the noise out."""
    for what, value_of in (
        ("result", lambda run: run.numbers.get("final_val_loss")),
        ("data order", lambda run: run.order_fingerprint),
        ("first weights", lambda run: run.init_fingerprint),
    ):
        for name, group in by_name([run for run in runs if run.completed]).items():
            by_rate = by_value(group, lambda run: (run.learning_rate, value_of(run)))  # noqa: B023
            for (_, value), same_runs in by_rate.items():
                seeds = sorted({run.seed for run in same_runs if run.seed is not None})
                if value is not None and len(seeds) > 1:
                    text = f"seeds {', '.join(map(str, seeds))} of {name} have one {what}"
                    sentence = f"Seeds are not independent: {text}, so that their interval leaves out what that varies."
                    return Finding(
                        "seeds", "violation", sentence, run_labels(same_runs), {"shared": what, "seeds": seeds}
                    )
    return _copied(runs)


def _copied(runs: Sequence[RunRecord]) -> Finding | None:
    """A result that two names share on some of their seeds and not on the others: a run cannot do that."""
    losses = {
        name: {run.seed: run.numbers["final_val_loss"] for run in group if run.completed}
        for name, group in by_name(runs).items()
    }
    for first, second in combinations(losses, 2):
        shared = losses[first].keys() & losses[second].keys()
        same_result = sorted(
            seed for seed in shared if losses[first][seed] == losses[second][seed] and seed is not None
        )
        if same_result and len(same_result) < len(shared):
            seeds = ", ".join(map(str, same_result))
            sentence = (
                f"{first} and {second} have the same result under seed {seeds} and not under others: one is a copy."
            )
            return Finding("seeds", "violation", sentence, run_labels(runs), {"shared": "result", "seeds": same_result})
    return None


def _scored(run: RunRecord) -> tuple[Any, ...]:
    """What of the validation text a run is scored on."""
    options = run.config.get("evaluation") or {}
    return options.get("final_sequences"), options.get("rows", "all"), run.numbers.get("val_tokens")


def _scoring(run: RunRecord) -> dict[str, Any]:
    """How a run is scored but for what `_scored` has: every key of `evaluation` on which a score of text rests."""
    apart = re.compile(
        r"evaluation\.(final_sequences|rows|prompt|new_tokens|temperature|top_k|speed.*|lengths|corpora)"
    )
    return {key: value for key, value in about("rows", run).items() if not apart.fullmatch(key)}


def _rows_text(rows: tuple[Any, ...]) -> str:
    sequences, part, tokens = rows
    text = "all sequences" if sequences is None else f"{sequences} sequences"
    return text + ("" if part == "all" else f" ({part})") + ("" if tokens is None else f", {int(tokens):,} tokens")


def _in_curve(run: RunRecord) -> float:
    return min(float((run.config.get("evaluation") or {}).get("sequences") or 0), _in_table(run))


def _in_table(run: RunRecord) -> float:
    length = run.numbers.get("sequence_length") or (run.config.get("data") or {}).get("sequence_length") or 1
    return max(1.0, round(run.numbers["val_tokens"] / float(length)))  # a row of T tokens has T targets


def _order(run: RunRecord) -> Any:
    return run.order_fingerprint
