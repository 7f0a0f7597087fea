"""Writes down what a set claims before its first run starts (`hf_arch.runs.registration`); one process at a time."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hf_arch.core.errors import ConfigError
from hf_arch.experiments.execution.leases import Leases
from hf_arch.experiments.execution.worker import LEASES_DIR
from hf_arch.experiments.planning.controls import declared_architectures
from hf_arch.experiments.planning.rates import RATE
from hf_arch.recipe.recipe import Recipe
from hf_arch.recipe.seeds import AutoSeeds
from hf_arch.runs.claims import unjudged
from hf_arch.runs.files import CLAIMS_FILE
from hf_arch.runs.registration import claims_made_by, register

WAIT_SECONDS = 30.0


def register_claims(recipe: Recipe, names: Sequence[str], results_dir: Path) -> None:
    """Registers the hypothesis of a set whose runs have these names, and says what of it was added or removed later.

    Raises ConfigError where the file of earlier claims is damaged, or another process holds it.
    """
    experiment = recipe.experiment
    if not experiment.hypothesis.strip() and not (results_dir / CLAIMS_FILE).exists():
        return
    leases = Leases(results_dir / LEASES_DIR)
    until = time.monotonic() + WAIT_SECONDS
    while (lease := leases.take("claims")) is None:
        if time.monotonic() > until:
            raise ConfigError(f"{results_dir}: another process has been writing the claims for {WAIT_SECONDS:.0f} s")
        time.sleep(0.05)
    with lease:
        most = experiment.seeds.most if isinstance(experiment.seeds, AutoSeeds) else None
        seeds = experiment.first_seeds
        file = results_dir / CLAIMS_FILE
        before = file.read_bytes() if file.exists() else b""
        entries = register(results_dir, experiment.name, experiment.hypothesis, names, seeds, most, experiment.metric)
    for made in claims_made_by(entries):
        registration = made.registration
        if registration.status == "added later" or registration.removed is not None:
            print(f"claim: {made.claim}: {registration.sentence}", file=sys.stderr, flush=True)
    if experiment.hypothesis.strip() and file.read_bytes() != before:
        for line in _unjudged(recipe, names):
            print(f"warning: {line}", file=sys.stderr, flush=True)


def _unjudged(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Which claims name no run. A ladder, and a matrix of more than rates, make names of their own, which `--dry-run`
    looks at."""
    experiment = recipe.experiment
    if experiment.ladder is not None or set(experiment.matrix) - {RATE}:
        return []
    own = recipe.model.get("architecture")
    architectures = [*declared_architectures(recipe).values(), *([] if own is None else [str(own)])]
    return unjudged(experiment.hypothesis, [*names, *architectures])
