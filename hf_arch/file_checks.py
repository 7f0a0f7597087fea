"""`hf-arch check FILE`: every part that a user's file registers, each held to its contract in a small model of it.

A part of the model (mixer, feed-forward, norm, position, stream, activation) or a whole architecture is checked by
`checks.check_model`; a probe by what a fair synthetic task has to be; optimisers, schedules, initialisation policies,
metrics and columns by `plugin_checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import hf_arch
from hf_arch.checks import CheckResult, check_model
from hf_arch.core import registry
from hf_arch.core.errors import ConfigError
from hf_arch.core.registry import Registry, load_plugin
from hf_arch.data.probes import PROBES
from hf_arch.data.probes.probe import IGNORE
from hf_arch.plugin_checks import KINDS, check_entry

MODEL_PARTS: Mapping[str, tuple[Registry[Any], Callable[[str], dict[str, Any]]]] = {
    "mixer": (registry.MIXERS, lambda name: {"mixer": [name, name, "attention"]}),
    "ffn": (registry.FFNS, lambda name: {"ffn": name}),
    "norm": (registry.NORMS, lambda name: {"norm": name}),
    "position": (registry.POSITIONS, lambda name: {"mixer": "attention", "position": name}),
    "stream": (registry.STREAMS, lambda name: {"stream": name}),
    "site": (registry.SITES, lambda name: {"mixer": ["gla", "attention"], "sites": [name]}),
    "embedding": (registry.EMBEDDINGS, lambda name: {"mixer": ["gla", "attention"], "embeddings": [name]}),
    "depth": (registry.DEPTHS, lambda name: {"mixer": ["gla", "attention"], "depth": name}),
    "loss": (registry.LOSSES, lambda name: {"mixer": ["gla", "attention"], "losses": [name]}),
    "activation": (registry.ACTIVATIONS, lambda name: {"hidden_act": name}),
}
"""Kind -> its registry, and the changes to a small mixed model that put the part of this name into it."""


def check_file(
    path: str | Path, overrides: Mapping[str, Any] | None = None, device: str | torch.device = "cpu"
) -> dict[str, list[CheckResult]]:
    """Everything that a file registers, by name, in small models of it.

    Args:
        path: a plugin file. overrides: fields of the small models' configs, nested as in a recipe.

    Raises:
        ConfigError: the file cannot be loaded, registers nothing that can be checked, or overrides what a probe, which
            has no config, cannot take.
    """
    tables = {kind: table for kind, (table, _) in MODEL_PARTS.items()}
    tables |= {"architecture": registry.ARCHITECTURES, "probe": PROBES}
    tables |= {kind: table for kind, (table, _) in KINDS.items()}
    entries = [entry for part in load_plugin(path).parts for entry in part.entries]
    new = {kind: [name for held, name, _ in entries if held is table] for kind, table in tables.items()}
    if not any(new.values()):
        raise ConfigError(
            f"{path}: registers nothing new that can be checked; decorate a class with one of the registries of "
            f'hf_arch.core.registry, as in `@MIXERS.register("name")`; checked are: {", ".join(tables)}'
        )
    overrides = dict(overrides or {})
    results = {}
    for kind, (_, changes) in MODEL_PARTS.items():
        for name in new[kind]:
            config = hf_arch.tiny_config("mixed", **{**changes(name), **overrides})
            results[_title(kind, name, new)] = check_model(config, device=device)
    for name in new["architecture"]:
        results[_title("architecture", name, new)] = check_model(hf_arch.tiny_config(name, **overrides), device=device)
    for kind in ("probe", *KINDS):
        for name in new[kind]:
            if overrides:
                raise ConfigError(f"{next(iter(overrides))}: the {kind} {name!r} has no config that this could change")
            results[_title(kind, name, new)] = check_probe(name) if kind == "probe" else check_entry(kind, name)
    return results


def _title(kind: str, name: str, new: Mapping[str, Iterable[str]]) -> str:
    """The name, with its kind where the file registers another kind under the same name."""
    return name if sum(name in names for names in new.values()) == 1 else f"{name} ({kind})"


def check_probe(name: str) -> list[CheckResult]:
    """Whether a probe's rows are what comparisons rest on: a function of the seed, and answerable.

    Answers must lie in the vocabulary, stand in every row, and not all be the same; train and test rows, and the rows
    of two seeds, must differ.
    """
    probe = PROBES[name]
    checks: dict[str, tuple[Callable[[Any], str | None], str]] = {
        "rows": (_rows, "inputs and labels are int64 [N, T], tokens and answers below vocab_size"),
        "answers": (_answers, "a row without an answer teaches nothing; labels are -100 except at answers"),
        "same seed, same rows": (_repeats, "draw everything from the `rng` that the generator is given"),
        "other seed, other rows": (_differs, "draw the rows from the `rng` that the generator is given"),
        "chance is not enough": (_varied, "answers that are all the same are right without looking at the row"),
    }
    results = []
    for title, (check, hint) in checks.items():
        try:
            wrong = check(probe)
        except Exception as error:  # a generator under test may raise anything
            wrong = f"{type(error).__name__}: {' '.join(str(error).split())}"
        results.append(CheckResult(title, wrong is None, wrong or "ok", "" if wrong is None else hint))
        if not results[0].passed:
            break
    return results


def _small(probe: Any, split: str = "train", seed: int = 0) -> Any:
    return probe.data(split, seed, probe.cpu, examples=64)


def _rows(probe: Any) -> str | None:
    for split in ("train", "test"):
        data = _small(probe, split)
        if data.inputs.dtype != torch.int64 or data.inputs.dim() != 2 or data.inputs.shape != data.labels.shape:
            return f"{split}: inputs {data.inputs.dtype} {tuple(data.inputs.shape)}, labels {tuple(data.labels.shape)}"
        answers = data.labels[data.labels != IGNORE]
        for what, values in (("tokens", data.inputs), ("answers", answers)):
            if values.numel() and not (int(values.min()) >= 0 and int(values.max()) < data.vocab_size):
                low, high = int(values.min()), int(values.max())
                return f"{split}: {what} from {low} to {high}; allowed: 0 to {data.vocab_size - 1}"
    return None


def _answers(probe: Any) -> str | None:
    data = _small(probe)
    empty = int((~(data.labels != IGNORE).any(dim=1)).sum())
    return f"{empty} of {len(data.labels)} rows have no answer" if empty else None


def _repeats(probe: Any) -> str | None:
    first, second = _small(probe), _small(probe)
    same = torch.equal(first.inputs, second.inputs) and torch.equal(first.labels, second.labels)
    return None if same else "two calls with one seed give other rows"


def _differs(probe: Any) -> str | None:
    first = _small(probe).inputs
    for what, other in (("seed", _small(probe, seed=1)), ("split", _small(probe, "test"))):
        if other.inputs.shape == first.shape and torch.equal(other.inputs, first):
            return f"another {what} gives the same rows"
    return None


def _varied(probe: Any) -> str | None:
    data = _small(probe)
    answers = data.labels[data.labels != IGNORE]
    commonest = int(torch.bincount(answers).max()) / len(answers)
    return f"one answer is right in {commonest:.0%} of all places" if commonest > 0.9 else None
