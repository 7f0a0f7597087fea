"""Claims about speed: other machines, busy machines and other ways to time are named; claims about losses stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from tests.experiments.synthetic import write_run
from tests.traps.test_planted import TRAPS as LOSS_TRAPS
from tests.traps.test_planted import judged, provenance

SPEED = "train_tokens_per_second"


def load(start: float, end: float, share: float = 0.98, threads: int = 1, **results: Any) -> dict[str, Any]:
    measured = {"cores": 4, "threads": threads, "start": start, "end": end, "processor_share": share}
    return {"results": {"machine_load": measured, "launch": {"device": "cpu", "processes": 1}, **results}}


IDLE = load(0.2, 1.0)
TRAPS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "other work next to one side": ("load", load(3.0, 4.5), IDLE),
    "other work when one side began": ("load", load(4.0, 1.0), IDLE),
    "processor time that one side did not get": ("load", load(0.2, 1.0, share=0.6), IDLE),
    "a queue twice as long behind equal shares": ("load", load(13.0, 13.0, share=0.55), load(7.0, 7.0, share=0.55)),
    "six per cent of the processor time": ("load", load(5.0, 5.0, share=0.55), load(5.0, 5.0, share=0.585)),
    "more next to one side of several threads": ("load", load(9.0, 9.0, threads=2), load(7.0, 7.0, threads=2)),
    "other threads": ("device", provenance(threads=1), provenance(threads=2)),
    "another processor": ("device", provenance(device="one"), provenance(device="another")),
    "other processes": (
        "device",
        {"results": {"launch": {"device": "cpu", "processes": 2}}},
        {"results": {"launch": {"device": "cpu", "processes": 1}}},
    ),
    "timed over more tokens": ("timing", {"config": {"evaluation": {"speed_tokens": 8}}}, {}),
    "an evaluation in larger batches": ("timing", {"config": {"training": {"per_device_eval_batch_size": 64}}}, {}),
    "more than the machine can": ("utilisation", {"results": {"mfu": 1.7}}, {}),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_speeds_of_unlike_machines_are_not_compared(trap: str, tmp_path: Path) -> None:
    check, first, second = TRAPS[trap]
    _, verdict = judged(tmp_path, first, second)
    assert verdict.outcome == "supported", verdict.evidence  # of the loss
    comparison = compare_runs(tmp_path, metric=SPEED)
    assert check in comparison.confounding_checks("gla", "llama")
    assert comparison.verdicts[0].outcome not in ("supported", "contradicted")


@pytest.mark.parametrize(
    ("trap", "of_speed"),
    [
        ("an untuned rate", False),
        ("scaled init on one side", False),
        ("another warm-up", False),
        ("other kernels", True),
    ],
)
def test_a_speed_is_not_confounded_by_what_moves_losses_alone(trap: str, of_speed: bool, tmp_path: Path) -> None:
    check, (first, second) = LOSS_TRAPS[trap]
    judged(tmp_path, first, second)
    assert check in compare_runs(tmp_path).confounding_checks("gla", "llama")
    assert (check in compare_runs(tmp_path, metric=SPEED).confounding_checks("gla", "llama")) == of_speed


def test_unequal_load_is_a_note_on_losses(tmp_path: Path) -> None:
    comparison, _ = judged(tmp_path, load(3.0, 4.5), IDLE)
    finding = next(finding for finding in comparison.findings if finding.check == "load")
    assert finding.severity == "note" and "more busy next to some runs" in finding.sentence


def test_a_queue_of_another_length_behind_equal_shares_confounds_nothing(tmp_path: Path) -> None:
    comparison, _ = judged(tmp_path, load(13.0, 11.0, share=0.56), load(9.0, 10.0, share=0.55))
    assert next(finding for finding in comparison.findings if finding.check == "load").severity == "note"
    assert "load" not in compare_runs(tmp_path, metric=SPEED).confounding_checks("gla", "llama")


@pytest.mark.parametrize(("given", "severity"), [(IDLE, "ok"), (load(5.0, 5.0), "note"), (load(0, 1, 0.6), "note")])
def test_equal_load_confounds_nothing_and_is_said(given: dict[str, Any], severity: str, tmp_path: Path) -> None:
    comparison, _ = judged(tmp_path, given, given)
    finding = next(finding for finding in comparison.findings if finding.check == "load")
    assert finding.severity == severity
    assert "load" not in compare_runs(tmp_path, metric=SPEED).confounding_checks("gla", "llama")


def test_the_loads_of_many_are_said_by_their_range(tmp_path: Path) -> None:
    for number in range(9):
        write_run(tmp_path, f"run{number}", 1, loss=1.5, **load(number, number + 1.0))
    [found] = [finding for finding in compare_runs(tmp_path).findings if finding.check == "load"]
    assert "from 0.00 (run0) to 2.00 (run8) other processes for each core." in found.sentence
    assert len(found.values["others"]) == 9


def test_several_threads_may_wait_for_each_other(tmp_path: Path) -> None:
    comparison, _ = judged(tmp_path, load(0.2, 2.0, 0.6, threads=2), load(0.2, 2.0, 0.95, threads=2))
    assert next(finding for finding in comparison.findings if finding.check == "load").severity == "ok"


def test_seconds_of_a_busy_machine_are_no_axis(tmp_path: Path) -> None:
    comparison, _ = judged(tmp_path, load(3.0, 4.5), IDLE)
    [pair] = comparison.budgets
    seconds = next(entry for entry in pair.axes if entry.axis == "seconds")
    assert "more busy next to some runs" in seconds.reason


def test_frozen_parameters_are_named_by_what_the_optimiser_steps(tmp_path: Path) -> None:
    groups = [{"lr": 1e-3, "weight_decay": 0.1, "parameters": 1_000_000}]
    frozen = {"results": {"optimizer": {"class": "AdamW", "groups": groups}}}
    _, verdict = judged(tmp_path, frozen, {})
    assert verdict.outcome == "confounded" and verdict.confounds == ("optimiser",)
    assert "the rest is frozen" in verdict.evidence
