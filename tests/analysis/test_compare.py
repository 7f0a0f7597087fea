"""The comparison: groups over seeds, the baseline, the table at any width, CSV and JSON, and the user's mistakes."""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hf_arch.analysis.columns import interval_text, seeds_text
from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.comparison import Comparison
from hf_arch.analysis.stats import Interval
from hf_arch.cli.compare import compare_command
from hf_arch.core.errors import ConfigError
from hf_arch.core.formats import byte_size, duration, quantity
from hf_arch.experiments import compare
from hf_arch.report.figures import figures
from hf_arch.report.page import render
from hf_arch.runs.claims import unjudged
from tests.experiments.synthetic import ARCHITECTURES, write_run, write_suite
from tests.report.text import comparison_text


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "suite")


def test_one_row_a_group_best_first(suite: Path) -> None:
    frame = compare(suite)
    assert sorted(frame["name"]) == sorted(ARCHITECTURES)
    assert frame["final_val_loss"].is_monotonic_increasing
    assert frame["seeds"].tolist() == [3, 3, 3, 3]
    assert frame.set_index("name")["failed"].to_dict() == {"gla": 0, "gpt2": 0, "llama": 0, "mamba": 1}


def test_means_are_over_completed_seeds(suite: Path) -> None:
    row = compare(suite).set_index("name").loc["mamba"]
    losses = [
        results["final_val_loss"]
        for path in suite.glob("mamba_*/results.json")
        if (results := json.loads(path.read_text()))["status"] == "completed"
    ]
    assert row["final_val_loss"] == pytest.approx(np.mean(losses))
    assert row["final_val_loss_low"] < row["final_val_loss"] < row["final_val_loss_high"]


def test_pairs_read_alike_from_both_sides(suite: Path) -> None:
    comparison = compare_runs(suite)
    assert len(comparison.pairs) == 6
    there, back = comparison.pair("gla", "gpt2"), comparison.pair("gpt2", "gla")
    assert there is not None and back is not None
    assert there.verdict == "better" and back.verdict == "worse"
    assert comparison.versus_baseline("gla") == there.words


def test_the_baseline_is_the_recipes_then_the_plainest(suite: Path, tmp_path: Path) -> None:
    assert compare_runs(suite).baseline == "gpt2"
    assert compare_runs(suite, baseline="llama").baseline == "llama"
    for name in ("gpt2", "gla"):
        write_run(tmp_path / "declared", name, 1, config={"run": {"baseline": "gla"}})
    assert compare_runs(tmp_path / "declared").baseline == "gla"
    with pytest.raises(ConfigError, match="nearest: 'llama'"):
        compare_runs(suite, baseline="lama")


def test_the_best_learning_rate_is_the_row_and_the_others_its_curve(tmp_path: Path) -> None:
    for rate, loss in ((1e-4, 1.9), (1e-3, 1.5), (1e-2, 2.4)):
        for seed in (1, 2):
            write_run(tmp_path, "gla", seed, learning_rate=rate, loss=loss + 0.01 * seed)
    group = compare_runs(tmp_path).group("gla")
    assert group.reference.learning_rate == 1e-3
    assert group.by_seed("final_val_loss") == {1: 1.51, 2: 1.52}
    assert list(group.rates) == [1e-4, 1e-3, 1e-2]


def test_a_rate_with_fewer_seeds_does_not_win_by_luck(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path, "gla", seed, learning_rate=1e-3, loss=1.5)
    write_run(tmp_path, "gla", 1, learning_rate=3e-3, loss=1.4)
    assert compare_runs(tmp_path).group("gla").reference.learning_rate == 1e-3


def test_of_repeated_runs_the_newest_counts(tmp_path: Path) -> None:
    old = write_run(tmp_path / "a", "gla", 1, loss=1.9)
    write_run(tmp_path / "b", "gla", 1, loss=1.5)
    os.utime(old / "results.json", (1, 1))
    assert compare_runs(tmp_path).group("gla").by_seed("final_val_loss") == {1: 1.5}


def test_one_name_for_different_models_is_told_apart_by_its_folder(tmp_path: Path) -> None:
    for folder, width in (("small", 64), ("large", 128), ("again", 128)):
        for seed in (1, 2):
            write_run(tmp_path / folder, "llama", seed, config={"model": {"hidden_size": width}})
    write_run(tmp_path / "small", "gla", 1)
    runs = [tmp_path / "small", tmp_path / "large"]
    assert {group.name for group in compare_runs(runs).groups} == {"small/llama", "large/llama", "gla"}
    assert [group.name for group in compare_runs([tmp_path / "large", tmp_path / "again"]).groups] == ["llama"]
    assert compare_runs(runs).verdicts[0].outcome == "not judged"  # gpt2 is not among them


def test_one_seed_is_compared_without_an_interval(tmp_path: Path) -> None:
    for name in ("gla", "gpt2"):
        write_run(tmp_path, name, 1)
    comparison = compare_runs(tmp_path)
    assert "one seed: no interval" in comparison.versus_baseline("gla")
    assert comparison.headline.endswith("With fewer than two seeds in common, no difference can be tested.")
    [figure] = [found for group in figures(comparison).values() for found in group if found.key == "differences"]
    assert figure.note == "Difference in validation loss; one seed has no interval."
    assert math.isnan(comparison.frame()["final_val_loss_low"].astype(float).iloc[0])
    assert "±" not in comparison_text(comparison)


def test_a_run_that_still_trains_is_not_called_failed(tmp_path: Path) -> None:
    for seed, results in ((1, {}), (2, {"status": "running"}), (3, {"status": "failed"})):
        write_run(tmp_path, "gla", seed, results=results)
    [group] = compare_runs(tmp_path).groups
    assert seeds_text(group) == "1 (1 running, 1 failed)"


def test_different_tokenizers_are_compared_in_bits_per_byte(suite: Path) -> None:
    assert compare_runs(suite).metric == "final_val_loss"
    for seed in (1, 2, 3):
        write_run(suite, "characters", seed, results={"tokenizer_fingerprint": "characters"})
    assert compare_runs(suite).metric == "bits_per_byte"


def test_a_suite_in_which_all_failed_is_still_shown(tmp_path: Path) -> None:
    for name in ("gla", "gpt2"):
        write_run(tmp_path, name, 1, results={"status": "failed", "final_val_loss": None})
    text = comparison_text(compare_runs(tmp_path))
    assert "No run completed" in text
    assert "gla" in text and "gpt2" in text


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_the_table_cuts_no_number_at_any_width(suite: Path, width: int) -> None:
    comparison = compare_runs(suite)
    text = comparison_text(comparison, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    for group in comparison.groups:
        for key in ("final_val_loss", "final_val_perplexity", "bits_per_byte"):
            assert interval_text(group.interval(key), 2 if key == "final_val_perplexity" else 3) in text
        assert byte_size(group.mean("state_bytes")) in text


def test_the_audit_stands_at_the_head(suite: Path) -> None:
    lines = comparison_text(compare_runs(suite), 200).splitlines()
    assert lines[0].startswith("Audit: 2 violations")
    assert lines.index(next(line for line in lines if "val loss" in line)) > len(compare_runs(suite).findings)


@pytest.mark.parametrize(
    ("hypothesis", "outcome"),
    [
        ("gla better than gpt2", "supported"),
        ("We expect that gpt2 is better than gla.", "contradicted"),
        ("gpt2 worse than llama in loss", "supported"),
        ("gpt2 not distinguishable from gla", "contradicted"),
        ("llama within 0.1 of gla", "supported"),
        ("llama within 0.01 of gla", "contradicted"),
        ("llama within 0.05 of gla", "undecided"),
        ("llama at least 1.5.", "supported"),
        ("llama at most 1.5", "contradicted"),
        ("llama within 0.02 of 1.55", "supported"),
        ("llama within 0.02 of 1.7", "contradicted"),
        ("llama within 0.02 of 1.57", "undecided"),
        ("llama at least gla", "not judged"),
        ("a gate helps", "not judged"),
        ("gla better than rwkv6", "not judged"),
    ],
)
def test_hypotheses_get_the_verdict_of_the_table(tmp_path: Path, hypothesis: str, outcome: str) -> None:
    for name, loss in (("gpt2", 1.62), ("llama", 1.55), ("gla", 1.50)):
        for seed in (1, 2, 3, 4):
            noise = random.Random(f"{name}-{seed}").gauss(0, 0.002)
            write_run(tmp_path, name, seed, loss=loss + noise, hypothesis=hypothesis)
    assert [verdict.outcome for verdict in compare_runs(tmp_path).verdicts] == [outcome]


@pytest.mark.parametrize(
    ("hypothesis", "told"),
    [
        ("gla better than llama, llama at least 0.9", []),
        ("gal better than llama", ["'gal' is not known; nearest: 'gla'"]),
        ("gates help", ["no claim of the form"]),
        ("gal and gla better than llama", ["'gal' is not known"]),
        ("gla worse than llama, lama and gla.", ["'lama' is not known"]),
        ("gla better than llama and llama worse than gla", []),
        ("with rates tuned and gla better than llama", []),
    ],
)
def test_what_of_a_hypothesis_will_not_be_judged_is_told_before(hypothesis: str, told: list[str]) -> None:
    for names in (
        ["gla", "llama"],
        [f"{name}-learning_rate-{rate}" for name in ("gla", "llama") for rate in (0.001, 1e-5)],
    ):
        lines = unjudged(hypothesis, names)
        assert len(lines) == len(told)
        assert all(text in line for text, line in zip(told, lines, strict=True))


def test_command_writes_csv_and_prints_the_table(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "table.csv"
    assert compare_command([str(suite)], None, None, str(path), False) == 0
    assert "Audit" in capsys.readouterr().out
    frame = pd.read_csv(path)
    assert frame["final_val_loss"].tolist() == pytest.approx(compare(suite)["final_val_loss"].tolist())


def test_command_prints_one_json_document(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare_command([], 100, str(suite), None, True)
    document = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert len(document["runs"]) == 13
    assert len(document["pairs"]) == 6
    assert {"metric", "baseline", "headline", "audit", "groups", "hypotheses"} <= document.keys()


def test_claims_are_a_family_of_their_own(suite: Path, tmp_path: Path) -> None:
    """Two claims about three of four runs: Holm over two tests, while the table corrects for six pairs."""
    for name, loss in (("gpt2", 1.62), ("llama", 1.55), ("gla", 1.50), ("mamba", 1.57)):
        for seed in (1, 2, 3):
            noise = random.Random(f"{name}-{seed}").gauss(0, 0.006)
            text = "gla better than gpt2; gpt2 worse than gla; llama better than gpt2"
            write_run(tmp_path, name, seed, loss=loss + noise, hypothesis=text)
    comparison = compare_runs(tmp_path)
    assert comparison.families == {"claims": 2, "pairs": 6}
    first, same, second = comparison.verdicts
    assert first.p_adjusted == same.p_adjusted  # one test, counted once
    raw = sorted([first.p_value or 0.0, second.p_value or 0.0])
    assert sorted([first.p_adjusted, second.p_adjusted]) == pytest.approx([2 * raw[0], max(2 * raw[0], raw[1])])
    pair = comparison.pair("gla", "gpt2")
    assert pair is not None and pair.p_value == pytest.approx(first.p_value) and pair.family == 6
    words = "Holm's correction runs over 2 claims, and separately over 6 pairs of the table"
    for text in (comparison_text(comparison, 300), render(comparison, "set").replace("&#39;", "'")):
        assert words in text
    assert compare_runs(suite).to_dict()["families"]["pairs"] == 6


def test_command_takes_runs_by_name_in_the_results_folder(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [path.name for path in suite.glob("gla_*")] + [path.name for path in suite.glob("gpt2_*")]
    compare_command(names, None, str(suite), None, True)
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 6


@pytest.mark.parametrize(
    ("runs", "latest", "results_dir", "words"),
    [
        (["missing"], None, None, "'missing' is not a folder"),
        ([], None, None, "no runs given"),
        (["a"], 3, None, "both given"),
        ([], 0, ".", "latest: 0"),
        ([], 3, "missing", "missing does not exist"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[str], latest: int | None, results_dir: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(words)) as error:
        compare_command(runs, latest, results_dir, None, False)
    assert "\n" not in str(error.value)


def test_numbers_are_written_with_three_digits() -> None:
    assert [quantity(value) for value in (0, 7, 999, 1234, 999_600, 124_439_808)] == [
        "0", "7.00", "999", "1.23k", "1.00M", "124M",
    ]  # fmt: skip
    assert [byte_size(value) for value in (100, 65_536, 2**20 - 1, 3.5 * 2**30)] == [
        "100 B", "64.0 KiB", "1.00 MiB", "3.50 GiB",
    ]  # fmt: skip
    assert [duration(value) for value in (3.2, 119.6, 7500)] == ["3.2 s", "120 s", "2 h 05 min"]
    assert interval_text(Interval(1.5, 1.4998, 1.5002, 3, 0.1)) == "1.5000 ± 0.0002"
    assert interval_text(None) == quantity(None) == "–"


def test_comparing_loads_no_model_library() -> None:
    code = (
        "import sys, types, pathlib; root = pathlib.Path(sys.argv[1]);"
        "package = types.ModuleType('hf_arch'); package.__path__ = [str(root)]; sys.modules['hf_arch'] = package;"
        "import hf_arch.analysis.comparison, hf_arch.report.page;"
        "print([name for name in ('torch', 'transformers', 'matplotlib', 'scipy', 'pandas') if name in sys.modules])"
    )
    import hf_arch

    root = str(Path(hf_arch.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("bound", "outcome"), [("0.1", "supported"), ("0.02", "confounded")])
def test_near_sides_that_still_learn_are_near_where_what_they_learn_is_less_than_the_bound(
    bound: str, outcome: str, tmp_path: Path
) -> None:
    for seed in (1, 2, 3):
        for name in ("gla", "llama"):
            loss = 1.5 + 0.001 * (seed**2 if name == "gla" else seed + 0.5)
            folder = write_run(tmp_path, name, seed, loss=loss, hypothesis=f"gla within {bound} of llama")
            rows = [{"step": step, "val_loss": loss + 0.2 * (200 - step) / 200} for step in range(10, 201, 10)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [verdict] = compare_runs(tmp_path).verdicts
    assert (verdict.statistics, verdict.outcome) == ("supported", outcome)
    assert ("still learning" in verdict.confounds) == (outcome == "confounded")


@pytest.mark.parametrize(
    ("claim", "why"),
    [
        ("mamba better than gla", "mamba has no result here; there are results of gla, llama"),
        ("gpt2 better than mamba", "gpt2, mamba have no result here"),
        ("gla reaches 1.5 more often than failing", "failing has no result here; there are results of gla, llama"),
        ("gla solves more often than llama", "Seeds solve a probe"),
        ("gla solves in at least 0.5 of its seeds", "Seeds solve a probe"),
        ("gla reaches 1.5 in at least 2 of its seeds", "2 is not a share of seeds"),
        ("gla at least llama", "'at least' needs a number after it, not llama"),
        ("gla better than 1.6", "'better than' needs a run after it, not 1.6"),
        ("gla within 0.1 of gla", "It compares a run with itself"),
    ],
)
def test_a_claim_that_is_not_judged_says_why(claim: str, why: str, tmp_path: Path) -> None:
    for seed in (1, 2):
        for name in ("gla", "llama", "failing"):
            failed = {"status": "failed", "final_val_loss": None} if name == "failing" else None
            write_run(tmp_path, name, seed, hypothesis=claim, results=failed)
    [verdict] = compare_runs(tmp_path).verdicts
    assert verdict.outcome == "not judged" and verdict.evidence.startswith(why)


def sequential_set(root: Path, differences: list[float]) -> Comparison:
    plan = {"run": {"sequential": {"least": 3, "most": 8}}}
    for seed, difference in enumerate(differences, start=1):
        for name, loss in (("gla", 1.5), ("llama", 1.5 + difference)):
            write_run(root, name, seed, loss=loss + 0.01 * seed, hypothesis="gla better than llama", config=plan)
    return compare_runs(root)


def test_table_and_headline_pay_for_looks_as_the_claim_does(tmp_path: Path) -> None:
    spread = np.array([-3.5, 2.5, -1.5, 0.5, 1.5, -0.5, 3.5, -2.5]) * 0.01
    mean = 2.37 * spread.std(ddof=1) / 8**0.5  # p = 0.0496
    comparison = sequential_set(tmp_path, [float(mean + one) for one in spread])
    [pair], [verdict] = comparison.pairs, comparison.verdicts
    assert pair.p_value is not None and pair.p_value < 0.05
    assert verdict.outcome == "undecided" == pair.verdict
    assert "not significantly different" in comparison.headline
    assert "with 80 % power" in comparison.power_of(pair) and comparison.power_of(pair) in verdict.evidence


def test_before_the_first_look_nothing_is_said_to_be_better(tmp_path: Path) -> None:
    [verdict] = sequential_set(tmp_path, [0.1, 0.1001]).verdicts
    assert verdict.outcome == "undecided" and "better by" not in verdict.evidence
    assert "the first look is after 3 seeds" in verdict.evidence
