"""The runs that take the confounds out of the claims of a set, before or after it was trained.

For each pair of runs that a claim compares, one thing after the other is made equal: the short convolution (given to
the side without it, where its mixer has one, else taken from the other; also taken from the other where it leaves a
branch with almost nothing to write), the training FLOPs (by width), the factors on embeddings and logits, what each
branch writes at initialisation (one factor a sublayer, `model.branch_scales`, unless it is so large that a branch would
learn at another rate), and, where no rate was tried, the same sweep of learning rates. Each stage is at most one
further run, `gla+short_convolution` or `gla+short_convolution+branch_scale`, compared to the same other side; the last
stage has all confounds removed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hf_arch.core.errors import ConfigError, UnknownKeyError
from hf_arch.data import PreparedData, prepare_data
from hf_arch.data.find import find_data
from hf_arch.experiments.planning.confounds import (
    BRANCHES,
    CONVOLUTION,
    EMBEDDING,
    EMBEDDING_KEYS,
    FLOPS,
    RATE,
    ModelFacts,
    confounds,
    examine,
    initial_model,
)
from hf_arch.experiments.planning.plan import PlannedRun, Planner
from hf_arch.recipe.dotted import set_dotted
from hf_arch.recipe.learning_rates import LearningRateOptions
from hf_arch.recipe.match import MatchOptions
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.limits import LARGEST_GAIN
from hf_arch.training.branches import solve_branches

ROWS = 4
SPREAD = 3.0
"""The factor between the rates that a control tries around the recipe's own."""
SWITCH = "use_short_conv"


@dataclass(frozen=True)
class Stage:
    """One claim's pair with some confounds removed: the `runs` that stand for the two sides of `pair`, what `removes`
    names, and in words what holds between them."""

    pair: tuple[str, str]
    removes: tuple[str, ...]
    runs: tuple[str, str]
    words: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as runs record them."""
        return {
            "pair": list(self.pair),
            "removes": list(self.removes),
            "runs": list(self.runs),
            "words": self.words,
        }


@dataclass
class Controls:
    """The set with its controls: the recipe, what each control records of itself, the stages of each claim, and what
    no control could remove, in words."""

    recipe: Recipe
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan_controls(recipe: Recipe, pairs: Sequence[tuple[str, str]], dry: bool = False) -> Controls:
    """Adds to a set the runs that remove the confounds of claims between these `pairs` of its runs. With `dry`, data
    that is not prepared stays so: random tokens then stand for its first rows.

    Raises:
        ConfigError: the set has no named runs, or something in a run is wrong.
    """
    if not recipe.experiment.runs:
        raise ConfigError("--controls: the recipe names no runs (experiment.runs) that a claim could compare")
    planning = _Planning(recipe, dry)
    for first, second in dict.fromkeys(tuple(pair) for pair in pairs):
        planning.add(first, second)
    return planning.result()


class _Planning:
    def __init__(self, recipe: Recipe, dry: bool = False) -> None:
        self.recipe, self.dry = recipe, dry
        match = recipe.experiment.match
        self.baseline = (match.reference if match else None) or next(iter(recipe.experiment.runs))
        self.runs = {name: dict(changes or {}) for name, changes in recipe.experiment.runs.items()}
        self.free: list[str] = list(match.free) if match else []
        self.added: dict[str, str] = {}
        self.stages: list[Stage] = []
        self.notes: list[str] = []
        self.swept: list[str] = []
        self._tokenizers: dict[str, Any] = {}
        self._ids: dict[str, Tensor] = {}
        self._seen: dict[str, tuple[PlannedRun, ModelFacts]] = {}

    def add(self, first: str, second: str) -> None:
        """The stages of the claim that compares these two runs."""
        fixed = first if first == self.baseline else second
        changed = second if fixed is first else first
        pair = (changed, fixed)
        sides, removes, words, done = self._equalise(pair, convolved=True)
        if not done and CONVOLUTION in removes:  # a convolution may be what makes branches so small
            found = self._equalise(pair, convolved=False)
            sides, removes, words, _ = found if found[3] else (sides, removes, words, done)
        if self._untuned(changed, fixed):
            sides = [self._new(side, RATE, self.runs[side]) for side in sides]
            self.swept += sides
            text = " and ".join([*words, "each is at its best of the same learning rates"])
            self.stages.append(Stage(pair, (*removes, RATE), (sides[0], sides[1]), text))

    def _equalise(self, pair: tuple[str, str], convolved: bool) -> tuple[list[str], list[str], list[str], bool]:
        """The runs that stand for the two sides once all but the rate is equal, what that removes, in words as well,
        and whether all of it was possible. The short convolution goes to both sides, or to neither."""
        sides, removes, words, possible = list(pair), [], [], True
        for remove in (
            lambda sides: self._convolve(sides, convolved),
            self._equal_flops,
            self._equal_embedding,
            self._equal_branches,
        ):
            try:
                done = remove(sides)
            except ConfigError as error:
                self.notes.append(f"{pair[0]} against {pair[1]}: {error}")
                possible = False
                continue
            if done is not None:
                removes.append(done[0])
                words.append(done[1])
                stage = Stage(pair, tuple(removes), (sides[0], sides[1]), " and ".join(words))
                if stage not in self.stages:
                    self.stages.append(stage)
        return sides, removes, words, possible

    def result(self) -> Controls:
        """The set with what was added."""
        experiment = self.recipe.experiment
        match = replace(experiment.match, free=tuple(self.free)) if experiment.match else None
        rates = experiment.learning_rates
        if self.swept:
            rate = float(self.recipe.training.get("learning_rate", 5e-5))
            grid = tuple(float(f"{rate * factor:.3g}") for factor in (1 / SPREAD, 1.0, SPREAD))
            rates = LearningRateOptions(grid, runs=tuple(dict.fromkeys(self.swept)))
        changed = replace(experiment, runs={**self.runs}, match=match, learning_rates=rates)
        stages = [stage.to_dict() for stage in self.stages]
        facts = {name: {"control": {"of": of, "stages": stages}} for name, of in self.added.items()}
        return Controls(replace(self.recipe, experiment=changed), facts, self.stages, self.notes)

    def _convolve(self, sides: list[str], both: bool) -> tuple[str, str] | None:
        facts = [self._look(side)[1] for side in sides]
        if facts[0].convolved == facts[1].convolved:
            return None
        without = 0 if facts[1].convolved else 1
        for place, wanted in ((without, True), (1 - without, False))[0 if both else 1 :]:
            changes = self._switched(sides[place], wanted)
            if changes is not None:
                sides[place] = self._new(sides[place], CONVOLUTION if wanted else f"no {CONVOLUTION}", changes)
                return CONVOLUTION, f"the short convolution is on {'both sides' if wanted else 'neither side'}"
        raise ConfigError(
            f"{CONVOLUTION}: neither {sides[without]} can be given one nor {sides[1 - without]} lose its own"
        )

    def _switched(self, name: str, wanted: bool) -> dict[str, Any] | None:
        """Changes that give a run's model a short convolution, or take it away; None where no option does."""
        changes = set_dotted(self.runs[name], f"model.{SWITCH}", wanted)
        try:
            return changes if self._facts_of(name, changes)[1].convolved == wanted else None
        except UnknownKeyError:
            return None

    def _equal_flops(self, sides: list[str]) -> tuple[str, str] | None:
        facts = [self._look(side)[1] for side in sides]
        if FLOPS not in confounds(*facts):
            return None
        match = MatchOptions(by="flops", tolerance=0.05, reference=sides[1])
        experiment = replace(
            self.recipe.experiment,
            match=match,
            learning_rates=None,
            runs={side: self._pinned(side) for side in sides},
        )
        planned = Planner(replace(self.recipe, experiment=experiment)).plan(self._tokenizers)
        run = next(run for run in planned.runs if run.declared == sides[0])
        changes = dict(self.runs[sides[0]])
        assert run.matched is not None
        for key, value in {**self._sizes(sides[0]), **run.matched.changes}.items():
            changes = set_dotted(changes, f"model.{key}", value)
        sides[0] = self._new(sides[0], FLOPS, changes)
        if sides[0] not in self.free:
            self.free.append(sides[0])
        return FLOPS, f"their training FLOPs are equal within {match.tolerance:.0%}"

    def _sizes(self, name: str) -> dict[str, int]:
        """What matching has changed in a run."""
        matched = self._look(name)[0].matched
        return {} if matched is None else dict(matched.changes)

    def _pinned(self, name: str) -> dict[str, Any]:
        """The changes of a run with its matched sizes written out."""
        changes = dict(self.runs[name])
        for key, value in self._sizes(name).items():
            changes = set_dotted(changes, f"model.{key}", value)
        return changes

    def _equal_embedding(self, sides: list[str]) -> tuple[str, str] | None:
        """The factors on embeddings and logits of the second side for the first, unless a run asks about them."""
        facts = [self._look(side)[1] for side in sides]
        asked = {key for side in sides for key in dict(self.runs[side].get("model") or {})}
        if EMBEDDING not in confounds(*facts) or asked & set(EMBEDDING_KEYS):
            return None
        changes = dict(self.runs[sides[0]])
        for key, value in zip(EMBEDDING_KEYS, facts[1].embedding, strict=True):
            changes = set_dotted(changes, f"model.{key}", value)
        sides[0] = self._new(sides[0], EMBEDDING, changes)
        return EMBEDDING, "embeddings and logits are multiplied by the same"

    def _equal_branches(self, sides: list[str]) -> tuple[str, str] | None:
        (run, own), (_, other) = (self._look(side) for side in sides)
        if BRANCHES not in confounds(own, other):
            return None
        seed = int(run.recipe.training.get("seed", 0))
        scales = solve_branches(initial_model(run.config, seed), self._rows(run), other.branches)
        gain = max(max(factor, 1 / factor) for layer in scales for factor in layer)
        if gain > LARGEST_GAIN:
            raise ConfigError(
                f"{BRANCHES}: a branch of {sides[0]} would have to be multiplied by a factor of {gain:.3g}, throughout "
                f"training; above {LARGEST_GAIN:g} its learning rate would be what is compared"
            )
        sides[0] = self._new(sides[0], BRANCHES, set_dotted(dict(self.runs[sides[0]]), "model.branch_scales", scales))
        return BRANCHES, "their branches begin with the same scale"

    def _untuned(self, first: str, second: str) -> bool:
        """Whether the two are different architectures, or mixers, at one rate that nobody chose."""
        experiment = self.recipe.experiment
        tried = experiment.learning_rates or experiment.tune or any("learning_rate" in key for key in experiment.matrix)
        configs = [self._look(side)[0].config for side in (first, second)]
        same = configs[0].model_type == configs[1].model_type and _kinds(configs[0]) == _kinds(configs[1])
        return not tried and not same

    def _new(self, name: str, removes: str, changes: dict[str, Any]) -> str:
        """The name of a run with these changes, entered into the set."""
        new = f"{name}+{removes.replace(' ', '_')}"
        number = 2
        while new in self.runs and self.runs[new] != changes:  # against another side it is another control
            new = f"{name}+{removes.replace(' ', '_')}{number}"
            number += 1
        if new not in self.runs:
            self.runs[new] = changes
            self.added[new] = self.added.get(name, name)
            if name in self.free:
                self.free.append(new)
        return new

    def _look(self, name: str) -> tuple[PlannedRun, ModelFacts]:
        return self._facts_of(name, self.runs[name])

    def _facts_of(self, name: str, changes: Mapping[str, Any]) -> tuple[PlannedRun, ModelFacts]:
        """A run of the set with these changes, matched, and what its model is at initialisation."""
        experiment = self.recipe.experiment
        key = json.dumps([changes, name in self.free], sort_keys=True, default=str)
        if key not in self._seen:
            probed = f"{name}+control"  # errors name it
            match = experiment.match
            kept = {self.baseline: self.runs[self.baseline]} if match else {}
            if match:
                match = replace(match, free=(probed,) if name in self.free else (), reference=self.baseline)
            runs: dict[str, Any] = {**kept, probed: dict(changes)}
            recipe = replace(self.recipe, experiment=replace(experiment, runs=runs, match=match, learning_rates=None))
            planner = Planner(recipe)
            self._prepare(planner)
            run = next(run for run in planner.plan(self._tokenizers).runs if run.declared == probed)
            seed = int(run.recipe.training.get("seed", 0))
            self._seen[key] = run, examine(run.config, self._rows(run), seed)
        return self._seen[key]

    def _prepare(self, planner: Planner) -> None:
        for run in planner.unmatched().runs:
            key = run.recipe.data_key
            if key in self._ids:
                continue
            seed = int(run.recipe.training.get("seed", 0))
            if run.recipe.probe is not None:
                self._ids[key] = torch.as_tensor(run.recipe.probe.data("train", seed).inputs[:ROWS])
            else:
                if (data := self._data(run)) is None:
                    generator = torch.Generator().manual_seed(seed)
                    shape = ROWS, run.recipe.sequence_length
                    self._ids[key] = torch.randint(run.config.vocab_size, shape, generator=generator)
                    continue
                order = run.recipe.training.get("data_seed")
                self._tokenizers[key] = data.tokenizer
                rows = data.order(seed if order is None else int(order)).indices(0, ROWS)
                self._ids[key] = torch.stack([data.train[int(row)]["input_ids"] for row in rows])

    def _data(self, run: PlannedRun) -> PreparedData | None:
        return find_data(run.recipe.data).prepared if self.dry else prepare_data(run.recipe.data)

    def _rows(self, run: PlannedRun) -> Tensor:
        return self._ids[run.recipe.data_key]


def _kinds(config: PreTrainedConfig) -> list[str]:
    return [mixer.__name__ for mixer, _ in config.mixer_members]


def declared_architectures(recipe: Recipe) -> dict[str, str]:
    """The architecture of each run that the recipe declares."""
    return {
        name: str({**recipe.model, **((changes or {}).get("model") or {})}.get("architecture"))
        for name, changes in recipe.experiment.runs.items()
    }
