"""A run that became slow says so once, with what can be seen of the cause."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_arch.training import slowdown
from hf_arch.training.slowdown import SlowdownWatch, describe_cause

ARGS = SimpleNamespace(device=torch.device("cpu"))


def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], speeds: list[float], seconds: float = 10.0
) -> list[str]:
    """The lines of a run whose logging windows have these speeds."""
    clock = {"now": 0.0}
    monkeypatch.setattr(slowdown.time, "perf_counter", lambda: clock["now"])
    log: Any = SimpleNamespace(speeds=[])
    watch = SlowdownWatch(log)
    for step, speed in enumerate(speeds, 1):
        clock["now"] += seconds
        log.speeds.append(speed)
        watch.on_log(ARGS, SimpleNamespace(global_step=step, is_world_process_zero=True), None, {"loss": 1.0})
        watch.on_log(ARGS, SimpleNamespace(global_step=step, is_world_process_zero=True), None, {"eval_loss": 1.0})
    return capsys.readouterr().err.splitlines()


def test_three_times_slower_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(monkeypatch, capsys, [500.0, 1000.0, 900.0, 250.0, 100.0])
    assert len(lines) == 1
    assert lines[0].startswith(
        "step 4: 4.0 times slower than this run was before (250 tokens/s, 1,000 at best): it got "
    )


@pytest.mark.parametrize(
    ("speeds", "seconds"), [([1000.0, 400.0, 900.0], 10.0), ([1000.0, 100.0], 0.1), ([100.0], 9.0)]
)
def test_less_than_that_or_a_moment_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], speeds: list[float], seconds: float
) -> None:
    assert said(monkeypatch, capsys, speeds, seconds) == []


@pytest.mark.parametrize(
    ("cores", "threads", "load", "policy", "expected"),
    [
        (1.9, 2, 9.0, "", "OMP_WAIT_POLICY=PASSIVE"),
        (0.6, 2, 9.0, "passive", "other work slows it down"),
        (0.5, 1, 9.0, "", "other work slows it down"),
        (0.1, 1, 0.2, "", "it waits for something else"),
        (1.0, 1, 1.0, "", "the machine itself computes slower"),
    ],
)
def test_the_cause_is_what_can_be_seen(
    monkeypatch: pytest.MonkeyPatch, cores: float, threads: int, load: float, policy: str, expected: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    monkeypatch.setattr(slowdown, "usable_cores", lambda: 4)
    cause = describe_cause(cores, threads, load)
    assert expected in cause and f"{cores:.1f} of {threads} cores" in cause
