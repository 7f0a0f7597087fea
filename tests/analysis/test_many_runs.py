"""How the audit words what it says of more runs than a sentence can name, and of numbers longer than one can read."""

from __future__ import annotations

import json
from pathlib import Path

from hf_arch.analysis.audits.keys import with_values
from hf_arch.analysis.compare import compare_runs
from hf_arch.runs.suite import load_runs
from tests.experiments.synthetic import write_run
from tests.traps.test_planted import judged, rates, scaled


def sentence(root: Path, check: str) -> str:
    [found] = [finding for finding in compare_runs(root).findings if finding.check == check]
    return found.sentence


def test_clipping_of_many_is_said_by_its_range(tmp_path: Path) -> None:
    for number in range(9):
        folder = write_run(tmp_path, f"run{number}", 1)
        norms = [3.0] * number + [0.5] * (8 - number)
        rows = [{"step": 10 * i, "loss": 1.0, "grad_norm": norm} for i, norm in enumerate(norms)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "in 0% (run0) to 100% (run8) of the logged steps." in sentence(tmp_path, "clipping")


def test_a_rate_at_the_edge_is_said_once_for_all_that_chose_it(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        write_run(tmp_path, name, 1, **rates(chosen=3e-3 if name == "three" else 3e-4))
    assert sentence(tmp_path, "learning rate").endswith(": one, two: 0.0003; three: 0.003.")


def test_branches_that_write_nothing_have_no_factor(tmp_path: Path) -> None:
    judged(tmp_path, scaled(0.0), scaled(0.3))
    assert "initialisation differs: mixers write 0 of the residual stream in" in sentence(tmp_path, "branch scale")


def test_long_numbers_are_shortened_where_they_stay_apart(tmp_path: Path) -> None:
    def said(first: float, second: float) -> str:
        settings = {run: {"key": value} for run, value in zip(load_runs(tmp_path), (first, second), strict=True)}
        return with_values(settings, ["key"])[0]

    for name in ("a", "b"):
        write_run(tmp_path, name, 1)
    assert said(1, 11.313708498984761) == "key (1: a; 11.3137: b)"
    assert said(0.1, 0.30000000000000004) == "key (0.1: a; 0.3: b)"
    assert said(0.3, 0.30000000000000004) == "key (0.3: a; 0.30000000000000004: b)"
