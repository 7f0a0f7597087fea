"""What `hf-arch bench` measures: architectures by name, the runs of a recipe, saved models, and their counterparts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hf_arch
from hf_arch.checkpoints.checkpoint import load_config, model_folder
from hf_arch.core.errors import ConfigError, choice_error, describe_choices
from hf_arch.core.registry import ARCHITECTURES
from hf_arch.evaluation.bench import Candidate
from hf_arch.experiments.planning.plan import plan_runs
from hf_arch.interchange import FOREIGN, to_foreign
from hf_arch.recipe.build import build_config
from hf_arch.recipe.overrides import config_overrides
from hf_arch.recipe.recipe import SECTIONS, load_recipe

AGAINST = ("transformers",)


def find_candidates(
    targets: Sequence[str], *, tokens: int, against: str | None, report: Callable[[str], None] = lambda line: None
) -> list[Candidate]:
    """The models that `targets` name.

    Args:
        targets: names, recipes, runs or saved models; `key=value` among them changes the config of each name and path,
            dotted keys those of recipes.
        tokens: positions that every model needs; shorter ones are lengthened.
        against: `transformers` adds the counterpart of the same sizes and weights, as the baseline, where there is
            one; None compares all to the first.

    Raises:
        ConfigError: nothing to measure, an unknown name, or no counterpart for any.
    """
    if against is not None and against not in AGAINST:
        raise choice_error("--against", against, AGAINST)
    overrides = [target for target in targets if "=" in target]
    named = {name: config for target in targets if "=" not in target for name, config in _configs(target, overrides)}
    if not named:
        raise ConfigError("ARCH: name at least one; allowed: a recipe, a path, an architecture (hf-arch list)")
    for config in named.values():
        config.max_position_embeddings = max(config.max_position_embeddings, tokens)
    ours = [Candidate(name, "hf_arch", _builder(config)) for name, config in named.items()]
    if against is None:
        return [ours[0], *(replace(candidate, baseline=ours[0].label) for candidate in ours[1:])]
    pairs: list[Candidate] = []
    for candidate in ours:
        theirs = counterpart(candidate)
        if theirs is None:
            report(f"{candidate.name}: transformers has no counterpart of these options; measured alone")
            pairs.append(candidate)
        else:
            pairs += [replace(candidate, baseline=theirs.label), theirs]
    if len(pairs) == len(ours):
        raise ConfigError(f"--against: transformers has no counterpart of {', '.join(named)}")
    return pairs


PLAIN = ("gpt2", "llama", "mistral", "qwen3", "mixtral", "mamba", "mamba2", "deepseek_v3")
"""Tried before their relatives, which hold the same models with multipliers of one."""


def counterpart(candidate: Candidate) -> Candidate | None:
    """The first architecture of transformers that holds this model exactly, with its weights; None where none does."""
    model = candidate.build()
    own = model.config.model_type.removeprefix("hfa_")
    for model_type in sorted(FOREIGN, key=lambda name: (name != own, name not in PLAIN)):
        if model_type not in CONFIG_MAPPING:
            continue
        try:
            values, state = to_foreign(model, model_type)
        except ConfigError:
            continue
        return Candidate(candidate.name, "transformers", _foreign_builder(values, state, model))
    return None


def _builder(config: PreTrainedConfig) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()

    return build


def _foreign_builder(
    values: dict[str, Any], state: dict[str, torch.Tensor], ours: PreTrainedModel
) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        config = AutoConfig.for_model(**values)
        theirs = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        theirs.load_state_dict(state, strict=False)
        theirs.tie_weights()
        _check_same(ours, theirs)
        return theirs

    return build


@torch.no_grad()
def _check_same(ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    """A comparison of two different functions would be worth nothing."""
    tokens = torch.arange(3, 3 + 16).remainder(ours.config.vocab_size)[None]
    ours_logits, theirs_logits = ours(tokens).logits, theirs(tokens).logits
    scale = theirs_logits.abs().max().clamp(min=1)
    difference = ((ours_logits - theirs_logits).abs().max() / scale).item()
    assert difference < 1e-3, f"{type(theirs).__name__} gives other logits ({difference:.1e})"


def _configs(target: str, overrides: Sequence[str]) -> list[tuple[str, PreTrainedConfig]]:
    """(name, config) of an architecture, of each run of a recipe, or of a saved model."""
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        runs = plan_runs(load_recipe(target, overrides)).runs
        return list({run.name: build_config(run.recipe) for run in runs}.items())
    if path.exists():
        if overrides:
            raise ConfigError(f"{overrides[0]}: a saved model is measured as it is; leave {overrides[0]!r} out")
        return [(path.name, load_config(model_folder(path)))]
    names = hf_arch.list_architectures()
    if target not in names:
        choices = describe_choices(target, names, ARCHITECTURES.listing)
        raise ConfigError(f"{target}: neither a recipe, nor a folder, nor an architecture; {choices}")
    return [(target, hf_arch.config_from_dict({"architecture": target, **config_overrides(overrides, SECTIONS)}))]
