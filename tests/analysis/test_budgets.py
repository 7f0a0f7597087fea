"""Three axes and the exchange rate: known curves give known ratios, and what they do not allow is refused in words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_arch.analysis.budgets import AtBudget, PairBudgets, pair_lines
from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.comparison import Comparison
from hf_arch.analysis.exchange import SeedCurves, exchange_rates
from hf_arch.cli.compare import compare_command
from hf_arch.report.page import write_report
from tests.experiments.synthetic import write_run
from tests.report.text import comparison_text

TOKENS = np.arange(1, 41) * 1e4
STEPS = np.arange(1, 41) * 5


def curves(scale: float, seeds: int = 3, noise: float = 0.0, flops: float = 1.0) -> SeedCurves:
    """L = 2 + 100 (scale t)^-0.5: whoever has twice the scale needs half the tokens."""
    rng = np.random.default_rng(int(scale * 100))
    losses = 2 + 100 * (scale * TOKENS) ** -0.5 + noise * rng.standard_normal((seeds, 1))
    return SeedCurves(TOKENS, losses, np.full(seeds, flops), None)


def test_known_curves_give_the_known_ratio_and_costs() -> None:
    tokens, flops, seconds = exchange_rates("a", "b", curves(2.0, flops=3.0), curves(1.0))
    assert tokens.ratio == pytest.approx(0.5, rel=1e-3)
    assert (tokens.low, tokens.high) == (pytest.approx(0.5, rel=1e-3), pytest.approx(0.5, rel=1e-3))
    assert flops.ratio == pytest.approx(1.5, rel=1e-3)
    assert seconds.ratio is None and "seconds are not recorded" in seconds.reason
    assert exchange_rates("b", "b", curves(1.0), curves(1.0))[0].ratio == 1.0


def test_the_slower_one_never_gets_there() -> None:
    for rate in exchange_rates("a", "b", curves(0.5), curves(1.0)):
        assert rate.ratio is None
        assert rate.reason == "a never reaches the loss of b within its budget"


def test_the_interval_is_open_where_some_resamples_never_get_there() -> None:
    rate = exchange_rates("a", "b", curves(1.05, noise=0.05), curves(1.0, noise=0.05))[0]
    if rate.ratio is not None:
        assert rate.high == math.inf
        assert "never within its budget] of its tokens" in rate.share
        assert rate.to_dict()["open"] is True and rate.to_dict()["high"] is None
    steady = exchange_rates("a", "b", curves(3.0, noise=0.01, seeds=8), curves(1.0, noise=0.01, seeds=8))[0]
    assert steady.low is not None and steady.high is not None
    assert steady.low < 1 / 3 < steady.high < 0.6


def test_a_curve_that_begins_below_bounds_the_rate_from_above() -> None:
    rate = exchange_rates("a", "b", curves(1e4, noise=0.01), curves(1.0, noise=0.01))[0]
    assert rate.at_most and rate.low == 0.0 and rate.share.startswith("at most ")
    assert rate.to_dict()["at_most"] is True
    assert not exchange_rates("a", "b", curves(2.0), curves(1.0))[0].at_most


def test_a_loss_that_does_not_fall_has_no_rate() -> None:
    """Where the other diverged, its loss is that of its first evaluation, and any share of that would be chance."""
    rising = SeedCurves(TOKENS, np.tile(np.linspace(3, 9, len(TOKENS)), (3, 1)), None, None)
    for rate in exchange_rates("a", "b", curves(1.0), rising):
        assert rate.ratio is None and rate.reason == "the loss of b does not fall from its first evaluation to its last"


def test_two_seeds_are_refused() -> None:
    assert (
        "2 shared seeds; a bootstrap needs at least 3"
        in exchange_rates("a", "b", curves(2.0, 2), curves(1.0, 2))[0].reason
    )


@pytest.mark.rest
@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_the_interval_covers_the_ratio(seeds: int) -> None:
    """Noise of a seed moves both curves; that of a run only its own."""
    covered = 0
    for trial in range(60):
        rng = np.random.default_rng([seeds, trial])
        shared, own = 0.05 * rng.standard_normal((seeds, 1)), 0.01 * rng.standard_normal((2, seeds, 1))
        one, other = (
            SeedCurves(TOKENS, 2 + 100 * (scale * TOKENS) ** -0.5 + shared + own[i], None, None)
            for i, scale in enumerate((2.0, 1.0))
        )
        rate = exchange_rates("a", "b", one, other)[0]
        covered += rate.low is not None and rate.high is not None and rate.low <= 0.5 <= rate.high
    assert covered >= 54  # of 60 intervals of 95 %, 2 % of tests have fewer


def write_curve(
    root: Path, name: str, losses: np.ndarray, seed: int, *, rates: str = "constant", **results: Any
) -> None:
    """A run whose validation loss is `losses` at STEPS, at a rate that is constant or falls as a cosine."""
    config: dict[str, Any] = {"training": {"lr_scheduler_type": rates}}
    folder = write_run(
        root, name, seed, loss=float(losses[-1]), hypothesis="gla better than llama", results=results, config=config
    )
    rows = []
    for step, loss in zip(STEPS.tolist(), losses.tolist(), strict=True):
        rate = 1.0 if rates == "constant" else 0.5 * (1 + math.cos(math.pi * (step - 5) / 200))
        rows += [{"step": step, "loss": loss, "learning_rate": 1e-3 * rate, "tokens_seen": step * 4096}]
        rows += [{"step": step, "val_loss": loss}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_pair(root: Path, *, rates: str = "constant", flops: float = 1.0, seeds: int = 3, **of_gla: Any) -> Comparison:
    """gla needs half of llama's tokens, each of which costs it `flops` times as much."""
    for seed in range(1, seeds + 1):
        noise = 0.002 * math.sin(seed)
        for name, scale, cost in (("gla", 2.0, flops), ("llama", 1.0, 1.0)):
            own = 0.0005 * math.cos(seed + scale)
            losses = 2 + 100 * (scale * STEPS * 4096) ** -0.5 + noise + own
            more = {"flops_per_token": 1e6 * cost, "train_tokens_per_second": 5000 / cost}
            write_curve(root, name, losses, seed, rates=rates, **more, **(of_gla if name == "gla" else {}))
    return compare_runs(root)


def test_the_winner_flips_and_terminal_page_and_json_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = write_pair(tmp_path, flops=3.0)
    (entry,) = comparison.budgets
    assert [axis.difference.verdict for axis in entry.axes if axis.difference] == ["better", "worse", "worse"]
    flip = "The winner flips: gla on equal tokens; llama on equal training FLOPs and seconds."
    assert entry.flip == flip
    text, page = comparison_text(comparison, 500), write_report(tmp_path, comparison=comparison, png=False).read_text()
    for shown in (text, page.replace("\N{NO-BREAK SPACE}", " ")):
        assert flip in shown
        assert "gla reaches the loss of llama with 0.50 [0." in shown
        assert "llama never reaches the loss of gla within its budget" in shown
    compare_command([str(tmp_path)], None, None, str(tmp_path / "table.csv"), True)
    (written,) = json.loads(capsys.readouterr().out)["budgets"]
    assert written["flip"] == flip
    rates = {(rate["first"], rate["axis"]): rate["ratio"] for rate in written["exchange_rates"]}
    assert rates["gla", "tokens"] == pytest.approx(0.5, abs=0.02)
    for axis in ("flops", "seconds"):
        assert rates["gla", axis] == pytest.approx(3 * rates["gla", "tokens"])
    assert rates["llama", "tokens"] is None
    frame = comparison.frame().set_index("name")
    names = {"tokens_to_baseline_loss", "flops_to_baseline_loss_low", "seconds_to_baseline_loss_high"}
    assert names <= set(frame.columns)
    assert "tokens_to_baseline_loss" in (tmp_path / "table.csv").read_text()


def test_equal_costs_flip_nothing_and_are_the_tables_own_difference(tmp_path: Path) -> None:
    comparison = write_pair(tmp_path)
    (entry,) = comparison.budgets
    assert entry.flip == ""
    assert {axis.difference for axis in entry.axes} == {comparison.pair("gla", "llama")}


def test_a_schedule_that_decays_gives_no_exchange_rate_and_no_verdict_in_its_middle(tmp_path: Path) -> None:
    (entry,) = write_pair(tmp_path, rates="cosine", flops=3.0).budgets
    assert "the learning rate decays (cosine), so a loss before the end is not that of a run that ends there" in (
        entry.refusal
    )
    tokens, flops, _seconds = entry.axes
    assert tokens.difference is not None and tokens.difference.verdict == "better"
    assert flops.difference is None
    assert "not compared: the curve of llama is lower" in flops.words and "had not decayed there" in flops.words
    assert "The order changes on equal training FLOPs" in entry.flip


def test_a_reason_of_several_pairs_or_axes_is_said_once() -> None:
    reason = "not compared: no curve of validation losses was recorded"
    axes = (AtBudget("tokens", 8e5, gap=-0.1, reason="not compared: alone"), AtBudget("flops", 2e9, reason=reason))
    pairs = [PairBudgets(name, "llama", (*axes, AtBudget("seconds", 3.0, reason=reason)), ()) for name in "abcd"]
    pairs[3] = PairBudgets("d", "llama", (AtBudget("tokens", 1.0, reason="another"), *axes[1:]), ())
    lines = pair_lines(pairs)
    text = "\n".join(lines)
    assert text.count("no curve of validation losses") == 2  # d lacks one of the axes
    assert "On equal training FLOPs not compared (a and llama; b and llama; c and llama; d and llama): no curve" in text
    assert "On equal training FLOPs and seconds" in "\n".join(pair_lines(pairs[:3]))
    assert "d against llama: on equal tokens (1.00) another." in lines
    assert pairs[0].words.count("no curve of validation losses") == 1


@pytest.mark.parametrize(
    "change, words",
    [
        ({"data_fingerprint": "other"}, "scored on other data"),
        ({"tokenizer_fingerprint": "other", "bits_per_byte": None}, "scored on other tokenizers"),
        ({"sequence_length": 64}, "scored on other evaluation rows"),
    ],
)
def test_curves_on_other_rows_are_not_compared(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (entry,) = write_pair(tmp_path, flops=3.0, **change).budgets
    assert words in entry.refusal
    assert entry.axes[1].difference is None and words in entry.axes[1].words


def test_seconds_on_different_devices_are_not_compared(tmp_path: Path) -> None:
    (entry,) = write_pair(tmp_path, provenance={"device": "cuda"}).budgets
    assert "not compared: trained on different devices (cpu, cuda)" in entry.axes[2].words
    rate = entry.rate("gla", "seconds")
    assert rate is not None and rate.ratio is None and "different devices" in rate.reason


def test_two_seeds_have_no_rate(tmp_path: Path) -> None:
    (entry,) = write_pair(tmp_path, seeds=2).budgets
    assert "2 shared seeds" in entry.refusal
