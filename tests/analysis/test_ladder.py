"""The law of a ladder: known constants come out, noise is refused, and the page says what was held out and decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.comparison import Comparison
from hf_arch.analysis.held_out import HeldOut
from hf_arch.analysis.loss_surface import LossSurface, Points, fit_surface
from hf_arch.analysis.scaling import Refused
from hf_arch.core.errors import ConfigError
from hf_arch.recipe.ladder import LadderOptions
from hf_arch.report.page import write_report
from tests.experiments.synthetic import write_run
from tests.report.text import comparison_text

SIZES, TIMES = (1e5, 3e5, 1e6, 3e6, 1e7), (0.5, 1.0, 2.0, 4.0, 8.0)
E, A, B, ALPHA, BETA = 1.8, 20.0, 60.0, 0.3, 0.35


def law(n: Any, d: Any) -> Any:
    return E + A * n**-ALPHA + B * d**-BETA


def points(noise: float = 0.0, seeds: int = 2, sizes: Any = SIZES, times: Any = TIMES, seed: int = 0) -> Points:
    rng = np.random.default_rng(seed)
    n = np.repeat(sizes, len(times))
    d = n * np.tile(times, len(sizes))
    return Points(n, d, tuple(loss + noise * rng.standard_normal(seeds) for loss in law(n, d)))


def test_known_constants_are_recovered() -> None:
    fit = fit_surface(points(), samples=20)
    assert isinstance(fit, LossSurface), fit
    assert (*fit.values[[0, 3, 4]], *fit.amplitudes) == pytest.approx((E, ALPHA, BETA, A, B), rel=0.01)
    assert fit.predict(np.asarray([1e8]), np.asarray([1e9])) == pytest.approx(law(1e8, 1e9), rel=1e-3)


@pytest.mark.rest
def test_the_bootstrap_covers_the_constants() -> None:
    covered = np.zeros(3)
    for seed in range(10):
        fit = fit_surface(points(0.004, seed=seed), samples=60, seed=seed)
        assert isinstance(fit, LossSurface), fit
        for i, (index, truth) in enumerate(((0, E), (3, ALPHA), (4, BETA))):
            low, high = fit.interval(index)
            covered[i] += low <= truth <= high
    assert covered.min() >= 7


@pytest.mark.parametrize(
    "given, reason",
    [
        (points(sizes=SIZES[:1]), "5 points; five parameters need at least 6"),
        (points(sizes=SIZES[:2]), "2 sizes; curvature in size needs at least 3"),
        (points(times=(1.0,), sizes=(*SIZES, 3e7)), "1 budgets of tokens; at least 3 are needed"),
        (points(0.3, seed=0), "the losses do not determine"),
        (points(0.05, seed=2), "is not determined"),
        (Points(points().parameters, points().tokens, tuple(-x + 9 for x in points().losses)), "does not fall"),
    ],
)
def test_what_the_points_do_not_determine_is_refused(given: Points, reason: str) -> None:
    fit = fit_surface(given, samples=60)
    assert isinstance(fit, Refused), fit
    assert reason in fit.words


def test_points_without_curvature_are_refused() -> None:
    n = np.repeat(SIZES, 5)
    d = n * np.tile(TIMES, 5)
    losses = tuple(np.asarray([x]) for x in 9 - 0.2 * np.log(n) - 0.2 * np.log(d))
    assert isinstance(fit_surface(Points(n, d, losses), samples=40), Refused)


def write_ladder(
    root: Path,
    *,
    noise: float = 0.001,
    seeds: int = 3,
    sizes: Any = SIZES[:4],
    times_each: Any = TIMES[1:],
    cost: float = 1.0,
    gla: float = 2.0,
    left_out: Any = lambda base, size, times: False,
    of_run: Any = lambda base, size, times: {},
) -> Comparison:
    """llama by the law; gla needs half of its tokens (1 / `gla`), and each of them costs `cost` times the FLOPs and
    `cost`² times the seconds."""
    for base, scale, dear in (("llama", 1.0, 1.0), ("gla", gla, cost)):
        for size in sizes:
            for times in [times for times in times_each if not left_out(base, size, times)]:
                for seed in range(1, seeds + 1):
                    rng = np.random.default_rng([seed, int(size), int(10 * times), len(base)])
                    loss = float(law(size, scale * times * size) + noise * rng.standard_normal())
                    name = f"{base}-{size:g}-{times:g}x"
                    ladder = {"base": base, "size": size, "parameters": size, "tokens_per_parameter": times}
                    results = {"architecture": base, "tokens_seen": times * size, "flops_per_token": 6 * size * dear,
                               "train_tokens_per_second": 1e3 / dear**2,
                               "params_total": size + 1e4, "name": name, **of_run(base, size, times)}  # fmt: skip
                    config: dict[str, Any] = {"run": {"ladder": ladder}, "model": {"architecture": base}}
                    write_run(root, name, seed, loss=loss, results=results, config=config,
                              hypothesis="gla better than llama")  # fmt: skip
    return compare_runs(root)


def test_the_page_says_law_test_minima_ranking_and_multiplier(tmp_path: Path) -> None:
    comparison = write_ladder(tmp_path)
    ladder = comparison.ladder
    assert ladder is not None
    assert [entry.base for entry in ladder.rungs] == ["llama", "gla"]
    for entry in ladder.rungs:
        assert isinstance(entry.law, LossSurface), entry.law
        assert entry.law.values[3] == pytest.approx(ALPHA, abs=0.05)
        assert isinstance(entry.held_out, HeldOut), entry.held_out
        assert entry.held_out.inside >= 3
    assert {(entry["agree"], entry["pairs"]) for entry in ladder.accuracy} == {(4.0, 4.0)}
    for _size, rate in ladder.rates:
        assert rate.ratio == pytest.approx(0.5, abs=0.06)
    (multiplier,) = ladder.multipliers
    # Half the tokens at any size and equal cost: half the compute, whichever size is best.
    assert multiplier.ratio == pytest.approx([0.5] * 7, abs=0.05)
    assert all(
        low <= ratio <= high for low, ratio, high in zip(multiplier.low, multiplier.ratio, multiplier.high, strict=True)
    )

    assert {pair.first.split("-", 1)[1] == pair.second.split("-", 1)[1] for pair in comparison.pairs} == {True}
    (verdict,) = comparison.verdicts
    assert "gla-3e+06-8x against llama-3e+06-8x: better by" in verdict.evidence
    assert "gla-3e+06-8x has the best validation loss at the largest size and budget, " in comparison.headline
    text = comparison_text(comparison, 500)
    page = write_report(tmp_path, comparison=comparison, png=False).read_text().replace("\N{NO-BREAK SPACE}", " ")
    for line in ladder.lines:
        assert line in text and line.replace("'", "&#39;") in page
    for title in (
        "Loss against compute",
        "Best size of gla by compute",
        "from smaller sizes",
        "Compute of gla for the",
    ):
        assert title in page
    written = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))["ladder"]
    assert written["runs"][0]["law"]["a"] == pytest.approx(ALPHA, abs=0.05)
    assert len(written["runs"][0]["minima"]) == 4 and len(written["multipliers"][0]["ratio"]) == 7
    for minimum in written["runs"][0]["minima"]:
        assert minimum["low"] <= minimum["parameters"] <= minimum["high"] and minimum["words"] in text


def test_rates_are_of_tokens_flops_and_seconds(tmp_path: Path) -> None:
    """Half the tokens, as many FLOPs, twice the seconds."""
    ladder = write_ladder(tmp_path, sizes=SIZES[:2], cost=2.0).ladder
    assert ladder is not None
    for axis, ratio in (("tokens", 0.5), ("flops", 1.0), ("seconds", 2.0)):
        found = [rate.ratio for _size, rate in ladder.rates if rate.axis == axis]
        assert found == pytest.approx([ratio] * 2, rel=0.12)
    said = [line for line in ladder.lines if "reaches the loss of llama" in line]
    assert len(said) == 2 and all("of its training FLOPs" in line and "of its seconds" in line for line in said)


def test_a_small_ladder_is_refused_everywhere_and_its_losses_are_drawn(tmp_path: Path) -> None:
    comparison = write_ladder(tmp_path, sizes=SIZES[:2], seeds=1)
    assert comparison.ladder is not None
    lines = "\n".join(comparison.ladder.lines)
    assert "llama: not fitted: 2 sizes" in lines
    assert (
        "gla against llama: no multiplier of compute: gla: 2 sizes and 8 budgets; at least 3 of each are needed"
        in lines
    )
    assert "llama: no best size by compute: 2 sizes" in lines
    assert "no exchange rate: 1 shared seed" in lines
    page = write_report(tmp_path, comparison=comparison, png=False).read_text()
    assert "Loss against compute" in page and "Best size of" not in page


def test_one_budget_for_each_size_is_refused(tmp_path: Path) -> None:
    """Size and tokens then change together, and no law tells them apart."""
    ladder = write_ladder(tmp_path, times_each=(2.0,), seeds=2).ladder
    assert ladder is not None
    lines = "\n".join(ladder.lines)
    assert "llama: no best size by compute: each size has one budget" in lines
    assert "gla against llama: no multiplier of compute: gla: each size has one budget" in lines


def test_a_loss_that_rises_is_refused_everywhere(tmp_path: Path) -> None:
    rising = write_ladder(
        tmp_path,
        seeds=2,
        of_run=lambda base, size, times: {"final_val_loss": 2 + 0.1 * np.log10(size * times) + 0.01 * len(base)},
    ).ladder
    assert rising is not None
    lines = "\n".join(rising.lines)
    assert "llama: no best size by compute: the loss falls neither with parameters nor with tokens" in lines
    assert "no multiplier of compute" in lines


def test_tokens_that_are_not_recorded_are_said(tmp_path: Path) -> None:
    ladder = write_ladder(
        tmp_path, of_run=lambda base, size, times: {"tokens_seen": None} if (base, size) == ("gla", 1e6) else {}
    ).ladder
    assert ladder is not None
    lines = "\n".join(ladder.lines)
    assert (
        "gla: not fitted: the tokens of gla-1e+06-1x, gla-1e+06-2x, gla-1e+06-4x, gla-1e+06-8x are not recorded"
        in lines
    )
    assert "at 1.00M parameters gla against llama: no exchange rate: tokens are not recorded" in lines
    assert json.dumps(ladder.to_dict(), allow_nan=False)


def test_a_run_without_the_largest_size_is_compared_where_it_has_sizes(tmp_path: Path) -> None:
    """At the largest compute the other has a better size: not one that it was denied."""
    comparison = write_ladder(tmp_path, left_out=lambda base, size, times: base == "gla" and size == 3e6)
    ladder = comparison.ladder
    assert ladder is not None
    (multiplier,) = ladder.multipliers
    assert multiplier.ratio == pytest.approx([0.5] * 7, abs=0.05)
    assert max(multiplier.flops) <= 6 * 1e6 * 8e6 * 1.01
    assert "decision accuracy is not of llama and gla: at the largest size and budget one of them has no result" in (
        ladder.lines
    )
    (verdict,) = comparison.verdicts
    assert verdict.evidence.startswith(
        "gla has no result here at the largest size and budget, where a ladder's claims are judged; "
        "there are results of llama."
    )


def test_no_control_is_spoken_of_where_there_is_none(tmp_path: Path) -> None:
    """A smaller budget of gla has a better loss than the one run that is at the largest."""
    comparison = write_ladder(
        tmp_path, gla=8.0, left_out=lambda base, size, times: (base, size, times) == ("gla", 3e6, 8.0)
    )
    assert comparison.groups[0].name == "gla-3e+06-4x"
    assert comparison.headline.startswith(
        "llama-3e+06-8x has the best validation loss at the largest size and budget, "
    )
    assert "controls" not in comparison.headline


def test_equal_losses_rank_no_pair(tmp_path: Path) -> None:
    ladder = write_ladder(tmp_path, noise=0.0, gla=1.0, seeds=2).ladder
    assert ladder is not None and not ladder.accuracy
    assert any("their losses are equal" in line for line in ladder.lines)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_size_that_is_no_number_is_refused(value: float) -> None:
    for name in ("sizes", "tokens_per_parameter"):
        with pytest.raises(ConfigError, match=f"experiment.ladder.{name}: expected numbers above 0"):
            LadderOptions(**{"sizes": (1e5,), name: (value, 1e6)})


def test_the_audit_is_of_each_rung(tmp_path: Path) -> None:
    comparison = write_ladder(tmp_path, sizes=SIZES[:2], seeds=2)
    severities = {finding.check: finding.severity for finding in comparison.findings}
    assert severities["tokens"] == "ok"  # 1 to 8 tokens a parameter, but the same for both at each rung
    assert severities["parameters"] == "ok"
