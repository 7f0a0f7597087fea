"""Traps on one side that a recipe declares beside the architecture, or that show in what a run recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from tests.experiments.synthetic import VERSIONS, write_failed_run, write_run
from tests.traps.test_planted import SEEDS, judged, provenance, rates

Given = dict[str, Any]


def declared(section: str, **changes: Any) -> tuple[Given, Given]:
    """One side changes these keys as well as its architecture, and the recipe's `runs` say so."""
    run = {"question": ["model.architecture", *(f"{section}.{key}" for key in changes)]}
    return {"config": {section: changes, "run": run}}, {"config": {"run": run}}


def results(**values: Any) -> Given:
    return {"results": values}


def full_config(**values: Any) -> Given:
    return {"config": {"run": {"config": values}}}


def groups(*exempt: int) -> Given:
    """Of each group, how many of its numbers weight decay should leave alone; only the first group decays."""
    found = [
        {"lr": 1e-3, "weight_decay": decay, "parameters": count, "exempt": numbers}
        for decay, count, numbers in zip((0.1, 0.0), (1_200_000, 1_408), exempt, strict=True)
    ]
    return results(optimizer={"class": "AdamW", "groups": found})


def resumed(**change: Any) -> Given:
    return results(changes=[{"step": 100, "note": "", **change}])


def edited(seed: int) -> Given:
    return provenance(plugins={"m.py": "a" if seed < 3 else "b"})["results"]


TRAPS: dict[str, tuple[str, tuple[Given, Given]]] = {
    "another loss beside": ("losses", declared("model", losses=[{"type": "z_loss", "weight": 1e-3}])),
    "multi-token prediction": ("losses", declared("model", losses=["multi_token"])),
    "label smoothing": ("settings", declared("training", label_smoothing_factor=0.1)),
    "gradients clipped": ("optimiser", declared("training", max_grad_norm=0.1)),
    "larger batches": ("settings", declared("training", max_steps=100, per_device_train_batch_size=32)),
    "the best checkpoint": ("settings", declared("training", load_best_model_at_end=True)),
    "averaged checkpoints": ("settings", declared("training", average_checkpoints=3)),
    "longer rows": ("settings", declared("data", sequence_length=512)),
    "another packing": ("settings", declared("data", documents="separate")),
    "fewer rows in the curves": ("rows", declared("evaluation", sequences=32)),
    "another half of the rows": ("rows", declared("evaluation", rows="claim")),
    "an option of its scores": ("rows", declared("evaluation", metrics=[{"type": "entropy", "top": 5}])),
    "wider initial values": ("initialisation", declared("model", initializer_range=0.2)),
    "another initialisation": ("initialisation", declared("model", init="fla")),
    "a policy with options": ("initialisation", declared("model", init={"type": "mine", "gain": 2})),
    "rescaled residuals": ("initialisation", declared("model", rescale_residual_init=True)),
    "an option of one mixer's start": ("initialisation", declared("model", mixer={"type": "gla", "gate_init": 3.0})),
    "weights in bf16": ("precision", declared("model", dtype="bfloat16")),
    "tied at equal size": ("tying", (full_config(tie_word_embeddings=True), full_config(tie_word_embeddings=False))),
    "tied, by the recipe alone": ("tying", declared("model", tie_word_embeddings=True)),
    "dropout, by the recipe alone": ("dropout", declared("model", attention_dropout=0.1)),
    "dropout of a part": ("dropout", declared("model", ffn={"type": "glu", "dropout": 0.2})),
    "stopped early": ("tokens", (results(stopped_early=True, tokens_seen=400_000), {})),
    "extended": ("resumed", (resumed(key="training.max_steps", begun=100, now=200), {})),
    "resumed with other code": ("resumed", (resumed(key="environment.source_sha256", begun="a", now="b"), {})),
    "one seed resumed elsewhere": (
        "resumed",
        ({"results": lambda s: resumed(key="environment.device", now="H100")["results"] if s == 2 else {}}, {}),
    ),
    "steps skipped": ("finite", (results(skipped_steps=60), {})),
    "state of exactly ten times": ("state", (results(state_bytes=1_000_000), results(state_bytes=100_000))),
    "FLOPs of exactly twice": ("flops", (results(flops_per_token=10_000_000), results(flops_per_token=5_000_000))),
    "decayed dynamics": ("optimiser", (groups(900, 508), groups(0, 1_408))),
    "more rates": ("learning rate", (rates(grid=[1e-4, 3e-4, 1e-3, 3e-3]), {})),
    "another rate than was chosen": ("learning rate", ({"learning_rate": 2e-3, **rates(chosen=1e-3)}, {})),
    "a sweep for one seed only": (
        "learning rate",
        ({"config": lambda s: {"run": {"learning_rates": None}} if s == 1 else {}}, {}),
    ),
    "a sweep of its own for one seed": (
        "learning rate",
        ({"config": lambda s: rates(grid=[1e-4 * s, 1e-3, 9e-3])["config"]}, {}),
    ),
    "another package": (
        "versions",
        (provenance(versions={**VERSIONS, "numpy": "1.26"}), provenance(versions={**VERSIONS, "numpy": "2.4"})),
    ),
    "a plugin edited between seeds": ("code", ({"results": edited}, {"results": edited})),
    "a quarter of the body": ("non-embedding parameters", (results(params_embedding=1_000_000), {})),
}  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_on_one_side_is_never_decided(trap: str, tmp_path: Path) -> None:
    check, (first, second) = TRAPS[trap]
    comparison, verdict = judged(tmp_path, first, second)
    assert verdict.outcome == "confounded", verdict.evidence
    assert check in verdict.confounds
    named = [finding.sentence for finding in comparison.findings if finding.check == check]
    assert any("gla" in sentence or trap in ("another package",) for sentence in named)


def edit(root: Path, name: str, seed: int, **changes: Any) -> None:
    for path in root.glob(f"{name}_*/results.json"):
        content = json.loads(path.read_text())
        if content["seed"] == seed:
            path.write_text(json.dumps({**content, **changes}))


def rename_claim(root: Path, claim: str) -> None:
    for path in root.glob("*/results.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "hypothesis": claim}))


def diverged(root: Path) -> None:
    for seed in (5, 6):
        write_failed_run(root, "gla", seed)
        write_run(root, "llama", seed, loss=1.6 + seed / 1000)
    rename_claim(root, "gla better than llama")


def without_a_number(root: Path) -> None:
    edit(root, "gla", 4, final_val_loss=float("nan"))


def never_begun(root: Path) -> None:
    for seed in (5, 6, 7):
        write_run(root, "llama", seed, loss=1.6 + seed / 1000, hypothesis="gla better than llama")


def begun_again(root: Path) -> None:
    write_run(root / "again", "gla", 2, loss=1.4, hypothesis="gla better than llama").rename(root / "gla_again")
    (root / "again").rmdir()


def copied_between_seeds(root: Path) -> None:
    for seed in (3, 4):
        edit(root, "gla", seed, final_val_loss=1.5)


def copied_between_sides(root: Path) -> None:
    for name in ("gla", "llama"):
        edit(root, name, 2, final_val_loss=1.501)


def paired_wrongly(root: Path) -> None:
    edit(root, "gla", 1, order_fingerprint="order-of-seed-2")
    edit(root, "gla", 2, order_fingerprint="order-of-seed-1")


def a_step_was_lost(root: Path) -> None:
    with (next(root.glob("gla_*")) / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 40, "event": "skipped step", "step_loss": "inf"}) + "\n")


def clipped(root: Path) -> None:
    for path in root.glob("gla_*/metrics.jsonl"):
        path.write_text(path.read_text().replace('"grad_norm": 0.8', '"grad_norm": 3.1'))


FOLDERS: list[tuple[str, Callable[[Path], None]]] = [
    ("dropped runs", diverged),
    ("dropped runs", without_a_number),
    ("seeds", never_begun),
    ("duplicates", begun_again),
    ("seeds", copied_between_seeds),
    ("seeds", copied_between_sides),
    ("order", paired_wrongly),
    ("finite", a_step_was_lost),
    ("clipping", clipped),
]


@pytest.mark.parametrize(("check", "spoil"), FOLDERS, ids=lambda value: getattr(value, "__name__", ""))
def test_what_happened_to_a_folder_is_seen(check: str, spoil: Callable[[Path], None], tmp_path: Path) -> None:
    judged(tmp_path, {}, {})
    spoil(tmp_path)
    [verdict] = compare_runs(tmp_path).verdicts
    assert verdict.outcome not in ("supported", "contradicted")
    assert check in verdict.confounds


def test_seeds_of_a_set_that_both_sides_lack_are_missed_wherever_its_runs_are(tmp_path: Path) -> None:
    planned = {"config": {"run": {"planned_seeds": [*SEEDS, 5]}}}
    _, verdict = judged(tmp_path / "left out", planned, planned)
    assert verdict.outcome == "confounded" and verdict.confounds == ("dropped runs",)
    assert "5 has no result on either side" in verdict.evidence
    planned = {"config": {"run": {"planned_seeds": list(SEEDS)}}}
    _, verdict = judged(tmp_path / "whole", planned, planned)
    assert verdict.outcome == "supported"


@pytest.mark.parametrize("logged", [1, 8])
def test_the_gradient_of_a_solved_task_says_nothing_of_clipping(logged: int, tmp_path: Path) -> None:
    """gla ends as soon as it has solved the task; llama is clipped throughout. How gla learned shows only where it was
    logged often enough."""
    for seed in SEEDS:
        for name, norms in (("gla", [0.7] * (logged - 1) + [1e-4]), ("llama", [3.0] * 8)):
            folder = write_run(tmp_path, name, seed, results={"stopped_early": name == "gla"})
            rows = [{"step": 10 * i, "loss": 1.0, "grad_norm": norm} for i, norm in enumerate(norms)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [found] = [finding for finding in compare_runs(tmp_path).findings if finding.check == "clipping"]
    assert found.severity == ("violation" if logged == 8 else "note")
    assert ("on one side: in 0% (gla), 100% (llama)" if logged == 8 else "Too few were logged of gla") in found.sentence


def test_one_outlier_does_not_decide(tmp_path: Path) -> None:
    """The means are 0.25 apart, all of it by one seed that nearly diverged."""
    for seed in SEEDS:
        for name, loss in (("gla", 1.5), ("llama", 2.5 if seed == 3 else 1.5 + seed / 1000)):
            write_run(tmp_path, name, seed, loss=loss + seed / 5000, hypothesis="gla better than llama")
    [verdict] = compare_runs(tmp_path).verdicts
    assert verdict.outcome == "undecided"


def cut_short(root: Path) -> None:
    edit(root, "gla", 3, tokens_seen=400_000)


@pytest.mark.parametrize("spoil", [cut_short, without_a_number, copied_between_seeds])
@pytest.mark.parametrize("claim", ["gla at most 1.9", "gla within 0.2 of 1.5"])
def test_a_claim_about_a_number_needs_runs_of_one_thing(claim: str, spoil: Any, tmp_path: Path) -> None:
    for seed in SEEDS:
        write_run(tmp_path, "gla", seed, loss=1.51 + seed / 1000, hypothesis=claim)
    assert compare_runs(tmp_path).verdicts[0].outcome == "supported"
    spoil(tmp_path)
    assert compare_runs(tmp_path).verdicts[0].outcome == "confounded"


@pytest.mark.parametrize("claim", ["gla or mamba better than llama", "gla better than gpt2 or llama"])
def test_alternatives_are_no_claim(claim: str, tmp_path: Path) -> None:
    for seed in SEEDS:
        for name, loss in (("gla", 1.7), ("mamba", 1.5), ("llama", 1.6), ("gpt2", 1.8)):
            write_run(tmp_path, name, seed, loss=loss + seed / 1000 * len(name), hypothesis=claim)
    [verdict] = compare_runs(tmp_path).verdicts
    assert verdict.outcome == "not judged"


def test_two_claims_joined_by_or_are_each_judged(tmp_path: Path) -> None:
    judged(tmp_path, {}, {})
    rename_claim(tmp_path, "gla better than llama or llama better than gla")
    assert [verdict.outcome for verdict in compare_runs(tmp_path).verdicts] == ["supported", "contradicted"]


def test_an_equivalence_wider_than_the_difference_says_what_it_covers(tmp_path: Path) -> None:
    judged(tmp_path, {}, {})
    rename_claim(tmp_path, "gla within 0.5 of llama")
    [verdict] = compare_runs(tmp_path).verdicts
    assert verdict.outcome == "supported" and "and yet better by 0.0978" in verdict.evidence


def test_ten_times_the_seconds_are_said(tmp_path: Path) -> None:
    """A claim at equal tokens stands, and the audit and the axis of seconds say what it cost."""
    comparison, verdict = judged(tmp_path, results(train_tokens_per_second=520.0), {})
    assert verdict.outcome == "supported"
    said = next(finding for finding in comparison.findings if finding.check == "speed")
    assert said.severity == "note" and "differ by a factor of 10" in said.sentence
    [budgets] = comparison.budgets
    assert "on equal seconds" in budgets.words


def test_optimisers_at_one_untuned_rate_are_confounded(tmp_path: Path) -> None:
    own = {"model": {"architecture": "gla"}, "run": {"learning_rates": None, "question": ["training.optim"]}}
    first = {"config": {**own, "training": {"optim": "muon"}}, "results": {"architecture": "gla"}}
    _, verdict = judged(tmp_path, first, {"config": own, "results": {"architecture": "gla"}}, names=("new", "old"))
    assert verdict.outcome == "confounded" and verdict.confounds == ("learning rate",)


def test_a_tolerance_does_not_allow_what_confounds(tmp_path: Path) -> None:
    match = {"run": {"match": {"by": "parameters", "tolerance": 0.5, "reference": "llama"}}}
    _, verdict = judged(tmp_path, {"config": match, **results(params_total=1_500_000)}, {"config": match})
    assert verdict.outcome == "confounded" and "parameters" in verdict.confounds


@pytest.mark.parametrize("metric", ["train_tokens_per_second", "bits_per_byte"])
def test_a_claim_is_not_judged_by_another_number(metric: str, tmp_path: Path) -> None:
    judged(tmp_path, {}, {})
    [verdict] = compare_runs(tmp_path, metric=metric).verdicts
    assert verdict.outcome not in ("supported", "contradicted") and "metric" in verdict.confounds
    assert "made of the validation loss" in " ".join(verdict.reasons)
