"""The `experiment` section of a recipe: the question, and how it becomes runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.core.registry import COLUMNS
from hf_arch.recipe.dotted import dotted, nested
from hf_arch.recipe.ladder import LadderOptions, declared_ladder
from hf_arch.recipe.learning_rates import LearningRateOptions
from hf_arch.recipe.match import MatchOptions
from hf_arch.recipe.sections import require_mapping
from hf_arch.recipe.seeds import AutoSeeds, written_seeds
from hf_arch.recipe.tune import TuneOptions

MAX_SEEDS = 1000


@dataclass(frozen=True)
class ExperimentOptions:
    """The question, and how it becomes runs: named `runs` x points of `matrix` x `seeds`, made equal by `match`.

    A value of the matrix names its runs after its key (`-hidden_size-64`), or is `{name: short, value: ...}`
    (`-short`). `sets` names other recipes, by paths from this one, that are run instead, each in a folder of its own.
    `study` says what is made of the results besides the comparison: `search` recommends the smallest good model. `vary`
    names the dotted keys that the question is about, where `runs` change others too; the audit then names those.
    `metric` is the measured number that claims and the ranking are about (by default the validation loss, or the
    accuracy of probes). `columns` are registered by plugins, and shown next to the others.
    """

    name: str = ""
    hypothesis: str = ""
    description: str = ""
    seeds: tuple[int, ...] | AutoSeeds = ()
    matrix: dict[str, list[Any]] = field(default_factory=dict)
    match: MatchOptions | None = None
    runs: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    scale: dict[str, dict[str, Any]] = field(default_factory=dict)
    sets: tuple[str, ...] = ()
    study: Literal["search"] | None = None
    tune: TuneOptions | None = None
    learning_rates: LearningRateOptions | None = None
    vary: tuple[str, ...] = ()
    ladder: LadderOptions | None = None
    metric: str | None = None
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_together("ladder", ("tune", "matrix", "match", "learning_rates", "sets", "vary"))
        self._check_together("learning_rates", ("tune", "matrix"), "; write its points as runs")
        self._check_together("tune", ("matrix",), "; write its points as experiment.runs")
        if self.learning_rates is not None:
            for run in self.learning_rates.runs:
                if run not in self.runs:
                    raise choice_error("experiment.learning_rates.runs", run, self.runs)
        for column in self.columns:
            COLUMNS.get(column, "experiment.columns")
        if "/" in self.name or "\\" in self.name or self.name in (".", ".."):
            raise ConfigError(
                f"experiment.name: {self.name!r} is not allowed; it names a folder, so write it without /"
            )
        self._check_seeds()

    def _check_together(self, name: str, others: tuple[str, ...], advice: str = "") -> None:
        """Raises `ConfigError` where `name` is given with one of the others."""
        if getattr(self, name) is not None:
            for other in others:
                if getattr(self, other):
                    raise ConfigError(f"experiment.{name}: not together with experiment.{other}{advice}")

    def _check_seeds(self) -> None:
        if not isinstance(self.seeds, AutoSeeds):
            if any(seed < 0 for seed in self.seeds):
                raise ConfigError(f"experiment.seeds: expected whole numbers from 0, got {min(self.seeds)}")
            if len(set(self.seeds)) < len(self.seeds):
                raise ConfigError(f"experiment.seeds: expected each once, got {list(self.seeds)}")
        elif self.ladder is not None:
            raise ConfigError("experiment.seeds: auto does not go together with experiment.ladder; give their number")
        elif any("learning_rate" in key for key in self.matrix):
            raise ConfigError(
                "experiment.seeds: auto does not go together with experiment.matrix over learning rates; use "
                "experiment.learning_rates"
            )

    @property
    def first_seeds(self) -> tuple[int, ...]:
        """The seeds that are trained whatever comes of them."""
        return self.seeds.first(self.seeds.least) if isinstance(self.seeds, AutoSeeds) else self.seeds

    @property
    def last_seed(self) -> int | None:
        """The highest seed that may be trained; None without seeds."""
        return self.seeds.most if isinstance(self.seeds, AutoSeeds) else max(self.seeds, default=None)

    @property
    def is_set(self) -> bool:
        """True where the recipe declares more than one run."""
        several = self.runs or self.matrix or self.sets or self.tune or self.learning_rates or self.ladder
        return bool(several) or len(self.first_seeds) > 1


def experiment_section(values: object) -> dict[str, Any]:
    """The `experiment` section with what may be written in several ways written in one: `seeds: 3` as 1, 2, 3, `auto`
    as its limits, `match: flops` as `match: {by: flops}`, the changes of `runs` nested, the keys of `matrix` dotted.
    """
    section = dict(require_mapping(values, "experiment"))
    if "seeds" in section:
        section["seeds"] = written_seeds(section["seeds"])
    seeds = section.get("seeds")
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if not 1 <= seeds <= MAX_SEEDS:
            raise ConfigError(f"experiment.seeds: expected a list, or how many (1 to {MAX_SEEDS}), got {seeds}")
        section["seeds"] = list(range(1, seeds + 1))
    if isinstance(section.get("learning_rates"), list):
        section["learning_rates"] = {"rates": section["learning_rates"]}
    if isinstance(section.get("ladder"), Mapping):
        section["ladder"] = declared_ladder(section["ladder"])
    if isinstance(section.get("match"), str):
        section["match"] = {"by": section["match"]}
    if section.get("runs") is not None:
        runs = require_mapping(section["runs"], "experiment.runs")
        section["runs"] = {name: nested(changes, f"experiment.runs.{name}") for name, changes in runs.items()}
    if section.get("matrix") is not None:
        section["matrix"] = dict(dotted(require_mapping(section["matrix"], "experiment.matrix"), "experiment.matrix"))
    return section
