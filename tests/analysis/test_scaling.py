"""Laws in size: constants that are known come out, and what the points do not determine is refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.scaling import Refused, ScalingFit, fit_scaling
from hf_arch.cli.compare import compare_command
from hf_arch.report.page import write_report
from tests.experiments.synthetic import write_run
from tests.report.text import comparison_text

SIZES = [3e4, 1e5, 3e5, 1e6, 3e6, 1e7]


def law(size: float) -> float:
    return 1.2 + 40.0 * size**-0.35


def fitted(losses: list[list[float]], **options: int) -> ScalingFit:
    fit = fit_scaling(SIZES, losses, **options)
    assert isinstance(fit, ScalingFit), fit
    return fit


def test_an_exact_law_is_recovered() -> None:
    fit = fitted([[law(size)] for size in SIZES])
    assert fit.predict([3e7]) == pytest.approx([law(3e7)], abs=0.01)
    assert fit.alpha == pytest.approx(0.35, rel=0.05)
    assert fit.offset == pytest.approx(1.2, rel=0.02)


def test_the_band_covers_the_law() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(40):
        losses = [(law(size) + 0.01 * rng.standard_normal(5)).tolist() for size in SIZES]
        low, high = fitted(losses, samples=300, seed=trial).band([1e6])
        covered += bool(low[0] <= law(1e6) <= high[0])
    assert covered >= 35


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_intervals_cover_the_constants(seeds: int) -> None:
    """Of 60 intervals of 95 %, 51 or fewer are one in 10,000. Seeds redrawn within a size held 46 with three."""
    covered = np.zeros(2)
    for trial in range(60):
        rng = np.random.default_rng([seeds, trial])
        losses = [(law(size) + 0.003 * rng.standard_normal(seeds)).tolist() for size in SIZES]
        fit = fitted(losses, samples=300, seed=trial)
        truths = zip((fit.offset_interval, fit.alpha_interval), (1.2, 0.35), strict=True)
        covered += [low <= truth <= high for (low, high), truth in truths]
    assert covered.min() >= 52


@pytest.mark.parametrize(
    "sizes, losses, reason",
    [
        (SIZES[:5], [law(size) for size in SIZES[:5]], "5 sizes; three parameters need at least 6"),
        ([1e7, 1e7, *SIZES[:4]], [2.0] * 6, "5 sizes"),
        ([1e6 + 1e5 * i for i in range(6)], [2.0 - 0.1 * i for i in range(6)], "the largest size is 1.5 times"),
        (SIZES, [2.0, 2.1, 2.2, 2.3, 2.4, 2.5], "does not fall with size"),
        (SIZES, [4.0, 2.0, 2.0, 2.0, 2.0, 2.0], "the exponent is at the bound of its search, 3"),
        (SIZES, [40.0 * size**-0.2 for size in SIZES], "no curvature"),
        (SIZES, [2.0 - 0.1 * np.log(size / 3e4) for size in SIZES], "no curvature"),
    ],
)
def test_what_the_points_do_not_determine_is_refused(sizes: list[float], losses: list[float], reason: str) -> None:
    fit = fit_scaling(sizes, [[loss] for loss in losses])
    assert isinstance(fit, Refused), fit
    assert reason in fit.words


def test_noise_of_the_size_of_the_effect_is_refused() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        losses = [(1.2 + 0.02 * size**-0.05 + 0.05 * rng.standard_normal(3)).tolist() for size in SIZES]
        assert isinstance(fit_scaling(SIZES, losses), Refused)


def test_a_number_of_losses_that_is_not_that_of_the_sizes_is_an_error() -> None:
    with pytest.raises(ValueError, match="6 sizes, but losses for 1"):
        fit_scaling(SIZES, [[1.0]])


def write_sizes(root: Path, losses: list[float], tokens: list[int] | None = None) -> Path:
    """One architecture at as many sizes as there are losses."""
    for i, loss in enumerate(losses):
        for seed in (1, 2, 3):
            results = {"architecture": "gla", "params_total": int(SIZES[i])}
            if tokens is not None:
                results["tokens_seen"] = tokens[i]
            config = {"model": {"architecture": "gla", "hidden_size": 64 * 2**i}}
            write_run(root, f"size-{i}", seed, loss=loss + 0.002 * seed, results=results, config=config)
    return root


@pytest.mark.rest
@pytest.mark.parametrize(
    "losses, words",
    [
        ([law(size) for size in SIZES], "Scaling of gla: L(N) = 1.2"),
        ([4.0, 2.0, 2.0, 2.0, 2.0, 2.0], "Scaling of gla: not fitted: the exponent is at the bound of its search"),
        ([3.0, 2.5, 2.2, 2.0], "Scaling of gla: not fitted: 4 sizes"),
    ],
)
def test_law_and_refusal_are_said_wherever_the_comparison_is(
    tmp_path: Path, losses: list[float], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = compare_runs(write_sizes(tmp_path, losses))
    assert words in comparison_text(comparison, width=400)
    said = words.removeprefix("Scaling of gla: ")
    page = write_report(tmp_path, comparison=comparison, png=False).read_text()
    assert said[0].upper() + said[1:] in page
    compare_command([str(tmp_path)], None, None, None, True)
    (entry,) = json.loads(capsys.readouterr().out)["scaling"]
    assert said in entry["words"]
    assert (entry["reason"] is None) == (entry["exponent"] is not None) == said.startswith("L(N)")


def test_sizes_with_other_tokens_or_other_parts_are_no_law(tmp_path: Path) -> None:
    losses = [law(size) for size in SIZES]
    comparison = compare_runs(write_sizes(tmp_path / "tokens", losses, [10**6 * (i + 1) for i in range(6)]))
    assert "1,000,000 to 6,000,000 tokens" in comparison.scaling[0].words
    write_run(
        write_sizes(tmp_path / "parts", losses),
        "other",
        1,
        results={"architecture": "gla", "params_total": 2 * 10**6},
        config={"model": {"architecture": "gla", "hidden_size": 1, "mixer": {"type": "gla", "use_short_conv": True}}},
    )
    assert "more than size: model.mixer" in compare_runs(tmp_path / "parts").scaling[0].words


def test_variants_of_equal_size_are_no_study_of_size(tmp_path: Path) -> None:
    for i in range(6):
        write_run(tmp_path, f"variant-{i}", 1, results={"architecture": "gla", "params_total": 10**6 + 100 * i})
    assert compare_runs(tmp_path).scaling == ()
