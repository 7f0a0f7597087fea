"""Anchors that take a minute or two: what is known of an architecture is found again by this code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hf_arch
from hf_arch.core.registry import MIXERS, load_plugin
from hf_arch.experiments.planning.plan import plan_runs
from hf_arch.layers.layout import SequenceLayout
from hf_arch.recipe.build import build_config
from hf_arch.recipe.recipe import load_recipe
from hf_arch.training.run import run_training

ANCHORS = Path(__file__).parents[2] / "recipes" / "anchors"


def accuracies(anchor: str, folder: Path, *names: str) -> list[float]:
    """Accuracy of the named runs of a probe's anchor at the small scale, their first seed."""
    planned = plan_runs(load_recipe(ANCHORS / f"{anchor}.yaml", scale="cpu")).runs
    recipes = [next(run.recipe for run in planned if run.name == name) for name in names]
    return [
        run_training(recipe, folder / name, quiet=True)["accuracy"] for name, recipe in zip(names, recipes, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_attention_solves_multi_query_recall(tmp_path: Path) -> None:
    assert accuracies("mqar", tmp_path, "attention")[0] >= 0.99


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_only_negative_eigenvalues_follow_parity(tmp_path: Path) -> None:
    negative, positive, decay = accuracies("parity", tmp_path, "negative_eigenvalues", "positive_eigenvalues", "gla")
    assert negative >= 0.99
    assert max(positive, decay) < 0.9


def test_the_ladders_decays_differ_in_fineness_alone() -> None:
    """fixed: no parameters, the same at each token; scalar: one a head and token; both the same for all keys."""
    load_plugin(ANCHORS / "gate_mixers.py")
    planned = plan_runs(load_recipe(ANCHORS / "gate_ladder.yaml", scale="cpu"), match=False).runs
    mixers = {}
    for run in planned:
        config = build_config(run.recipe)
        mixer, options = config.mixer_specs[0]
        mixers[run.name] = mixer(config, options, 0)
    assert MIXERS.get("coarse_gla") is type(mixers["gate_scalar"])
    x = torch.randn(2, 5, 64)
    layout = SequenceLayout()
    decays = {name: mixer.log_decay(x, layout) for name, mixer in mixers.items()}
    assert decays["gate_none"] is None
    for name in ("gate_fixed", "gate_scalar"):
        assert decays[name].shape == decays["gate_vector"].shape and (decays[name] < 0).all()
        assert (decays[name] == decays[name][..., :1]).all()
    assert (decays["gate_fixed"] == decays["gate_fixed"][:1, :1]).all()
    assert not (decays["gate_scalar"] == decays["gate_scalar"][:1, :1]).all()
    counts = {name: sum(p.numel() for p in mixer.parameters()) for name, mixer in mixers.items()}
    assert counts["gate_none"] == counts["gate_fixed"] < counts["gate_scalar"] < counts["gate_vector"]
    assert hf_arch.cost(build_config(planned[0].recipe), 128).params_total > 0
