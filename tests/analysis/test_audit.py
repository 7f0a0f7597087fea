"""The audit: a clean suite passes every check, and each kind of unfairness is named with the runs that it concerns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.audit import audit
from hf_arch.analysis.finding import Finding
from hf_arch.core.files import read_json
from hf_arch.runs.record import write_results
from hf_arch.runs.suite import find_runs
from tests.experiments.synthetic import VERSIONS, write_failed_run, write_run

NAMES = ("gla", "gpt2", "llama")  # mamba has a convolution, which is a finding of its own
RATES = (1e-3,)


def clean_suite(root: Path, **changes: Any) -> None:
    """Three architectures x 3 seeds without a flaw; `changes` go to every run of gla."""
    for name in NAMES:
        for seed in (1, 2, 3):
            for rate in RATES:
                folder = write_run(root, name, seed, learning_rate=rate, **(changes if name == "gla" else {}))
                write_results(folder, read_json(folder / "results.json"))  # as a run does, with a digest


def findings(root: Path) -> dict[str, Finding]:
    return {finding.check: finding for finding in audit(find_runs(root))}


def test_a_fair_suite_has_no_violation_and_no_note(tmp_path: Path) -> None:
    clean_suite(tmp_path)
    assert {finding.sentence for finding in findings(tmp_path).values() if finding.severity != "ok"} == set()


@pytest.mark.parametrize(
    ("check", "results", "words"),
    [
        ("tokens", {"tokens_seen": 700_000}, "700,000: gla"),
        ("data", {"data_fingerprint": "another"}, "another: gla"),
        ("tokenizer", {"tokenizer_fingerprint": "another"}, "another: gla"),
        ("order", {"order_fingerprint": "shuffled"}, "(seeds 1, 2, 3); for seed 1, shuffled: gla"),
        ("parameters", {"params_total": 1_300_000}, "differ by 8.3%"),
        ("short convolution", {"short_convolution": None, "components": {"use_short_conv": True}}, "with gla; without"),
        ("initialisation", {"init_overridden": True}, "overridden in gla"),
        ("dropout", {"components": {"dropout": "residual 0.1"}}, "residual 0.1: gla; residual 0: gpt2, llama"),
        ("utilisation", {"mfu": 1.33}, "gla (seed 1) 133%"),
        ("device", {"provenance": {"versions": VERSIONS, "device": "cuda", "threads": 2}}, "cuda, 2 threads: gla"),
        ("versions", {"provenance": {"versions": {**VERSIONS, "torch": "2.6.0"}, "device": "cpu"}}, "torch 2.6.0"),
        ("precision", {"precision": "bf16"}, "bf16: gla; fp32: gpt2, llama"),
    ],
)  # fmt: skip
def test_a_difference_is_a_violation_in_words(tmp_path: Path, check: str, results: dict[str, Any], words: str) -> None:
    clean_suite(tmp_path, results=results)
    finding = findings(tmp_path)[check]
    assert finding.severity == "violation"
    assert words in finding.sentence
    assert any(label.startswith("gla") for label in finding.runs)


def test_the_scales_that_are_said_are_those_of_the_layer_in_which_sides_differ(tmp_path: Path) -> None:
    for name, last in (("gla", 0.09), ("llama", 0.3)):
        write_run(tmp_path, name, 1, results={"branch_scale": {"mixer": [0.3, 0.3, 0.3, last], "ffn": [0.3] * 4}})
    [finding] = [one for one in audit(find_runs(tmp_path)) if one.check == "branch scale"]
    assert (
        "a factor of 3.33: mixers write 0.09 of the residual stream in gla, 0.3 in llama (layer 4" in finding.sentence
    )
    assert finding.values == {"ratio": pytest.approx(10 / 3), "site": "mixer", "layer": 4, "gla": 0.09, "llama": 0.3}


def test_another_weight_decay_is_named_with_its_values(tmp_path: Path) -> None:
    clean_suite(tmp_path, config={"training": {"weight_decay": 0.0}})
    finding = findings(tmp_path)["optimiser"]
    assert finding.severity == "violation"
    assert "training.weight_decay (0.0: gla; 0.1: gpt2, llama)" in finding.sentence


def test_settings_of_one_model_are_a_question_not_a_violation(tmp_path: Path) -> None:
    model = {"model": {"architecture": "gla"}}
    for name, decay in (("low_decay", 0.0), ("high_decay", 0.3)):
        write_run(
            tmp_path, name, 1, config={**model, "training": {"weight_decay": decay}}, results={"architecture": "gla"}
        )
    assert findings(tmp_path)["optimiser"].severity == "note"


NO_SWEEP = {"run": {"learning_rates": None}}


def test_unequal_learning_rate_budgets(tmp_path: Path) -> None:
    for name in NAMES:
        for seed in (1, 2, 3):
            for rate in (1e-3, 3e-4):
                write_run(tmp_path, name, seed, learning_rate=rate, config=NO_SWEEP)
    for seed in (1, 2, 3):
        write_run(tmp_path, "gla", seed, learning_rate=1e-4, config=NO_SWEEP)
    finding = findings(tmp_path)["learning rate"]
    assert finding.severity == "violation"
    assert "gla: 0.0001, 0.0003, 0.001; gpt2, llama: 0.0003, 0.001" in finding.sentence


def test_broken_runs_are_named_with_their_reason(tmp_path: Path) -> None:
    clean_suite(tmp_path)
    write_failed_run(tmp_path, "gla", 4)
    (write_run(tmp_path, "gpt2", 4) / "results.json").unlink()
    write_run(tmp_path, "llama", 4, loss=float("nan"))
    finding = findings(tmp_path)["finished"]
    assert finding.severity == "violation"
    assert set(finding.runs) == {"gla (seed 4)", "gpt2 (seed 4)", "llama (seed 4)"}
    for words in ("MemoryError: no room", "still running, or killed", "without a finite validation loss"):
        assert words in finding.sentence


@pytest.mark.parametrize("row", [{"loss": float("nan")}, {"event": "skipped step", "step_loss": "nan"}])
def test_a_loss_that_was_nan_on_the_way_is_found(tmp_path: Path, row: dict[str, Any]) -> None:
    clean_suite(tmp_path)
    folder = write_run(tmp_path, "gla", 3, learning_rate=RATES[0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 210, **row}) + "\n")
    finding = findings(tmp_path)["finite"]
    assert finding.severity == "violation" and finding.runs == ("gla (seed 3)",)
    assert "step 210" in finding.sentence


def test_few_seeds_and_unshared_seeds_are_notes(tmp_path: Path) -> None:
    for name in NAMES:
        write_run(tmp_path / "few", name, 1)
    assert findings(tmp_path / "few")["seeds"].severity == "note"
    assert "gla, gpt2, llama: 1" in findings(tmp_path / "few")["seeds"].sentence
    for seed in (1, 2, 3):
        write_run(tmp_path / "unshared", "gla", seed)
        write_run(tmp_path / "unshared", "gpt2", seed + 1)
    assert "shared seeds" in findings(tmp_path / "unshared")["seeds"].sentence


def test_one_untuned_rate_is_a_note(tmp_path: Path) -> None:
    write_run(tmp_path, "gla", 1, config=NO_SWEEP)
    assert findings(tmp_path)["learning rate"].severity == "note"
    write_run(tmp_path, "gpt2", 1, config=NO_SWEEP)
    assert findings(tmp_path)["learning rate"].severity == "violation"  # across architectures


def test_what_is_not_recorded_is_said(tmp_path: Path) -> None:
    keys = (
        "tokens_seen", "data_fingerprint", "tokenizer_fingerprint", "order_fingerprint", "params_total",
        "learning_rate", "init_overridden", "provenance",
    )  # fmt: skip
    folder = write_run(tmp_path, "gla", 1, results=dict.fromkeys(keys))
    (folder / "experiment_config.json").unlink()
    unknown = {check for check, finding in findings(tmp_path).items() if "not recorded" in finding.sentence}
    assert unknown == {
        "tokens", "data", "tokenizer", "order", "parameters", "learning rate", "initialisation", "versions", "device",
        "settings", "edited",
    }  # fmt: skip


def declare_match(root: Path, **match: Any) -> None:
    """Writes how a set was matched into every run's config, as the runner does."""
    for path in root.glob("*/experiment_config.json"):
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "run": {**json.loads(path.read_text())["run"], "match": match}})
        )


def test_a_declared_tolerance_above_one_per_cent_is_a_note(tmp_path: Path) -> None:
    clean_suite(tmp_path, results={"params_total": 1_220_000})
    assert findings(tmp_path)["parameters"].severity == "violation"
    declare_match(tmp_path, by="parameters", tolerance=0.02)
    finding = findings(tmp_path)["parameters"]
    assert finding.severity == "note" and "the recipe allows 2%" in finding.sentence


def test_runs_matched_by_flops_may_differ_in_parameters(tmp_path: Path) -> None:
    clean_suite(tmp_path, results={"params_total": 1_300_000, "flops_per_token": 8_505_000})
    declare_match(tmp_path, by="flops", tolerance=0.02)
    found = findings(tmp_path)
    assert found["parameters"].severity == "note"
    assert found["flops"].severity == "ok"


def test_a_run_that_has_not_ended_differs_in_nothing_that_only_its_end_tells(tmp_path: Path) -> None:
    scored = {"val_tokens": 8192, "short_convolution": {"layers": [0]}}
    for seed in (1, 2, 3):
        write_run(tmp_path, "gla", seed, results=scored)
        write_run(tmp_path, "llama", seed, results=scored)
    (write_run(tmp_path, "llama", 4, results=scored) / "results.json").unlink()
    found = findings(tmp_path)
    assert {check for check, finding in found.items() if finding.severity == "violation"} == {"finished"}


def test_a_convolution_that_is_switched_off_does_not_count(tmp_path: Path) -> None:
    clean_suite(tmp_path, config={"model": {"mixer": {"type": "gla", "use_short_conv": False, "conv_size": 4}}})
    assert findings(tmp_path)["short convolution"].severity == "ok"


def test_a_repeated_run_is_named(tmp_path: Path) -> None:
    clean_suite(tmp_path / "a")
    write_run(tmp_path / "b", "gla", 1, learning_rate=RATES[0])
    assert findings(tmp_path)["duplicates"].runs == ("gla (seed 1)",)


def test_violations_come_first_and_every_check_speaks_of_its_runs(tmp_path: Path) -> None:
    clean_suite(tmp_path, results={"tokens_seen": 1, "init_overridden": True})
    found = audit(find_runs(tmp_path))
    severities = [finding.severity for finding in found]
    assert severities == sorted(severities, key=["violation", "note", "ok"].index)
    assert all(finding.runs and finding.sentence.endswith(".") for finding in found)
    assert len(found) >= 28  # of CHECKS some speak only where there is something to say


@pytest.mark.parametrize(("scored", "severity"), [(256, "ok"), (2560, "note")])
def test_curves_over_fewer_rows_than_the_table_are_said(tmp_path: Path, scored: int, severity: str) -> None:
    given = {
        "results": {"val_tokens": 64 * scored, "sequence_length": 64},
        "config": {"evaluation": {"sequences": 256}},
    }
    for name in NAMES:
        write_run(tmp_path, name, 1, **given)
    finding = findings(tmp_path)["rows"]
    assert finding.severity == severity
    assert ("first 256 of the table's 2,560 rows" in finding.sentence) == (severity == "note")
