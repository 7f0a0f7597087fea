"""What a set shows while it runs: state, loss against the baseline at equal tokens, time left for the whole."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hf_arch.core.files import write_json
from hf_arch.experiments.execution.curves import Curve
from hf_arch.experiments.execution.progress import Progress
from hf_arch.experiments.planning.prepare import ReadyRun


def ready(folder: Path, name: str, seed: int = 1, steps: int = 100) -> ReadyRun:
    path = folder / f"{name}_{seed}"
    path.mkdir(parents=True)
    return ReadyRun(name, path, {"training": {"seed": seed}, "run": {"baseline": "base"}}, steps)


def log(run: ReadyRun, *rows: dict[str, Any]) -> None:
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def row(step: int, val_loss: float, per_step: int = 10, speed: float = 100.0) -> dict[str, Any]:
    return {"step": step, "val_loss": val_loss, "tokens_seen": step * per_step, "tokens_per_second": speed}


def status(run: ReadyRun, status: str, **more: Any) -> None:
    write_json(run.folder / "results.json", {"name": run.name, "status": status, **more})


def shown(progress: Progress) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(progress.table())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_losses_are_compared_at_equal_tokens(tmp_path: Path) -> None:
    base, other = ready(tmp_path, "base"), ready(tmp_path, "other")
    log(base, row(10, 3.0), row(20, 2.0), row(30, 1.0))  # 100, 200, 300 tokens
    log(other, row(5, 2.9, per_step=30))  # 150 tokens, twice as wide a batch and more
    progress = Progress([base, other])
    assert progress.against_baseline(base) == ""
    assert progress.against_baseline(other) == "+0.4000 at 150"  # 2.9 - (3.0 + 2.0) / 2
    log(other, row(40, 0.5, per_step=30))  # far ahead: now at the baseline's last 300 tokens
    assert progress.against_baseline(other) == f"{2.9 + (10 - 5) / 35 * (0.5 - 2.9) - 1.0:+.4f} at 300"


def test_seeds_are_compared_with_their_own_baseline(tmp_path: Path) -> None:
    runs = [ready(tmp_path, name, seed) for seed in (1, 2) for name in ("base", "other")]
    for number, run in enumerate(runs):
        log(run, row(10, float(number) ** 2))
    progress = Progress(runs)
    assert [progress.against_baseline(run) for run in runs] == ["", "+1.0000 at 100", "", "+5.0000 at 100"]


def test_time_left_is_that_of_the_whole_set(tmp_path: Path) -> None:
    runs = [ready(tmp_path, name, seed) for seed in (1, 2) for name in ("base", "other")]
    progress = Progress(runs)
    assert progress.seconds_left() is None and "left" not in shown(progress)
    status(runs[0], "completed", wall_seconds=20.0)
    status(runs[1], "running")
    log(runs[1], row(50, 1.0, per_step=10, speed=10.0))  # 50 steps more, one second each: 50 s, of 100 s
    assert progress.seconds_left() == pytest.approx(50 + 20 + 100)
    assert "1 of 4 runs completed, about 2 min 50 s left" in shown(progress)
    status(runs[2], "running")
    log(runs[2], row(50, 1.0, per_step=10, speed=25.0))  # 20 s of 40 s; two at a time from here
    assert progress.seconds_left() == pytest.approx((50 + 20 + 100) / 2)
    text = shown(progress)
    assert [word in text for word in ("completed", "running", "waiting", "50/100")] == [True] * 4


def test_a_curve_takes_in_whole_lines_and_starts_again(tmp_path: Path) -> None:
    run = ready(tmp_path, "base")
    curve = Curve(run.folder)
    assert curve.update().newest == {} and curve.loss_at(1) is None
    log(run, row(10, 3.0), row(20, 2.0))
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "val_l')
    assert curve.update().newest["step"] == 20 and curve.loss_at(150) == 2.5 and curve.loss_at(250) is None
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('oss": 1.0, "tokens_seen": 300}\n')
    assert curve.update().loss_at(250) == 1.5
    log(run, row(20, 2.2))  # it went on from an earlier checkpoint
    assert curve.update().loss_at(200) == 2.2 and curve.loss_at(250) is None
    (run.folder / "metrics.jsonl").write_text(json.dumps(row(10, 4.0)) + "\n")
    assert curve.update().loss_at(100) == 4.0 and curve.loss_at(200) is None
