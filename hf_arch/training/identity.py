"""What determines the numbers of a run, as plain values that are saved with each checkpoint and compared before a run
goes on.

Everything that can be set is compared, unless `WITHOUT_EFFECT` lists it with the reason why no number depends on it.
Settings are compared as they were resolved (the config of the model, not the keys of the recipe; 10 warm-up steps, not
a share of 0.1), so another way to write the same thing is no difference. A difference is named by the recipe's key.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

if TYPE_CHECKING:
    from hf_arch.recipe.recipe import Recipe

_TRACKERS = "only where the numbers are sent, and under which name"
_PRINTED = "only what is printed"
_LOADER = "only how fast rows are fetched; which rows a step sees is a function of the seed and the step"
_SAVED = "only which checkpoints are kept (compared where `load_best_model_at_end` chooses among them)"
_PUSHED = "only where a push goes"
_SAMPLE = "only the sample of text, which is drawn after everything is measured"
WITHOUT_EFFECT: dict[str, str] = {
    **dict.fromkeys(("training.report_to", "training.run_name", "training.project"), _TRACKERS),
    **dict.fromkeys(
        ("training.trackio_space_id", "training.trackio_bucket_id", "training.trackio_static_space_id"), _TRACKERS
    ),
    **dict.fromkeys(("training.log_level", "training.log_level_replica", "training.log_on_each_node"), _PRINTED),
    "training.disable_tqdm": _PRINTED,
    **dict.fromkeys(("training.save_strategy", "training.save_steps", "training.save_total_limit"), _SAVED),
    **dict.fromkeys(("training.save_on_each_node", "training.save_only_model"), _SAVED),
    **dict.fromkeys(("training.dataloader_num_workers", "training.dataloader_pin_memory"), _LOADER),
    **dict.fromkeys(("training.dataloader_persistent_workers", "training.dataloader_prefetch_factor"), _LOADER),
    "training.dataloader_multiprocessing_context": _LOADER,
    **dict.fromkeys(("training.hub_model_id", "training.hub_private_repo", "training.hub_strategy"), _PUSHED),
    **dict.fromkeys(("training.hub_always_push", "training.hub_revision"), _PUSHED),
    "training.ddp_timeout": "only how long processes wait for each other before they give up",
    "training.num_train_epochs": "only sets `max_steps`, which is compared",
    "training.zero_redundancy": "shares the optimizer's states out; each parameter's update is the same",
    **dict.fromkeys(("evaluation.prompt", "evaluation.new_tokens"), _SAMPLE),
    **dict.fromkeys(("evaluation.temperature", "evaluation.top_k"), _SAMPLE),
}
"""Keys of a recipe that may change when a run is resumed, each with the reason why no number depends on it."""

_CHOICE_OF_BEST = ("training.save_strategy", "training.save_steps")
_SHARES = ("logging_steps", "eval_steps", "save_steps")


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was: `key` in the words of the recipe, the value at the checkpoint, the value now."""

    key: str
    begun: Any
    now: Any


@dataclass(frozen=True)
class RunIdentity:
    """What determines the numbers of a run; every field is a mapping of plain values.

    model: the resolved config, dotted.
    data: `fingerprint` of the rows, `tokenizer`, `sequence_length`, number of `rows`, `order` of the first rows.
    training: the resolved arguments; the optimiser and its options where it is not one of Trainer's; the precision.
    evaluation: what is scored.
    batch: sequences in one optimiser step, all processes together.
    optimiser: hashes of the names of all parameters, of those that decay, and of those that Muon steps.
    plugins: hash of the source of each file of the user's own that the run uses, by its name.
    recipe: the sections as they were written, dotted; only to name a difference by its key.
    """

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    batch: Mapping[str, Any]
    optimiser: Mapping[str, Any]
    plugins: Mapping[str, Any]
    recipe: Mapping[str, Any]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunIdentity:
        """From what `to_dict` gave. KeyError where a field is missing."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, as they are after reading it back."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    @property
    def max_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return int(self.training["max_steps"])


def compare(begun: RunIdentity, now: RunIdentity) -> list[Difference]:
    """What differs, but for the keys in `WITHOUT_EFFECT`; consequences of a difference that is named are left out."""
    found = _of_section("data", begun, now, ("fingerprint", "tokenizer", "sequence_length", "rows"))
    if not found:  # else another vocabulary may be a consequence of the rows
        found += _of_section("model", begun, now)
    found += _of_section("training", begun, now) + _of_section("evaluation", begun, now)
    used = {name: digest for name, digest in begun.plugins.items() if name in now.plugins}  # earlier releases: all
    found += _unequal("model.plugins: ", used, now.plugins) + _unequal("batch.", begun.batch, now.batch)
    if not found:
        found += _unequal("data.", begun.data, now.data) + _unequal("optimiser.", begun.optimiser, now.optimiser)
    return found


def in_steps(value: float, max_steps: int) -> int | float:
    """A number of steps, of which a value below 1 is a share."""
    return math.ceil(max_steps * value) if 0 < value < 1 else int(value)


def resolved_steps(args: TrainingArguments) -> dict[str, int | float]:
    """Warm-up and intervals of `args` in steps, where a recipe may give shares of all steps."""
    given = {key: value for key in _SHARES if (value := getattr(args, key)) is not None}
    steps = {key: in_steps(value, args.max_steps) for key, value in given.items()}
    return {**steps, "warmup_steps": args.get_warmup_steps(args.max_steps)}


def recipe_differences(begun: Mapping[str, Any], recipe: Recipe) -> list[Difference]:
    """The same from two recipes alone, for a finished run without checkpoints; `begun` is the one in its folder."""
    now, found = recipe.to_dict(), []
    for section in ("model", "data", "probe", "training", "evaluation"):
        sides = [flat(values.get(section) or {}, f"{section}.") for values in (begun, now)]
        found += [entry for entry in _unequal("", *sides) if entry.key not in WITHOUT_EFFECT]
    return [entry for entry in found if entry.key != "model.plugins"]


def _of_section(
    section: str, begun: RunIdentity, now: RunIdentity, keys: Iterable[str] | None = None
) -> list[Difference]:
    """Differences of a section, by the keys of the recipe that make them, else by what came of these."""
    sides = [getattr(identity, section) for identity in (begun, now)]
    if keys is not None:
        sides = [{key: values.get(key) for key in keys} for values in sides]
    best = any(identity.training.get("load_best_model_at_end") for identity in (begun, now))
    excused = set(WITHOUT_EFFECT) - set(_CHOICE_OF_BEST if best else ())
    given = {_top(key) for identity in (begun, now) for key in identity.recipe}
    # Another version of a library knows other options; one that no recipe gives is a matter of the environment.
    tops = [{_top(f"{section}.{key}") for key in values} for values in sides]
    strange = (tops[0] ^ tops[1]) - given
    unequal = _unequal(f"{section}.", *sides)
    resolved = [entry for entry in unequal if entry.key not in excused and _top(entry.key) not in strange]
    if not resolved:
        return []
    written_in = (f"{section}.", "probe.") if section == "data" else (f"{section}.",)
    written = {
        entry.key: entry
        for entry in _unequal("", begun.recipe, now.recipe)
        if entry.key.startswith(written_in) and entry.key not in {*excused, "model.plugins"}
    }
    return [entry for entry in resolved if entry.key in written] or list(written.values()) or resolved


def _top(key: str) -> str:
    """`model.mixer` of `model.mixer.type`."""
    return ".".join(key.split(".")[:2])


def _unequal(prefix: str, begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    keys = dict.fromkeys([*now, *begun])
    pairs = [(key, begun.get(key), now.get(key)) for key in keys]
    return [Difference(f"{prefix}{key}", old, new) for key, old, new in pairs if old != new]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found
