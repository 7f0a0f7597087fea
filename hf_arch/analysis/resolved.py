"""What each setting of a run came to, whether its recipe gives it or leaves it to a default.

Two recipes that say the same in other words differ in nothing: a default that one writes out, `8` and `8.0`, `glu` and
`{type: glu}`. Two that say the same may still differ, in what an architecture brings: a run records its model's whole
configuration (`run.config` of experiment_config.json), and that is what is compared, so that no list of settings has
to name them one by one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache, lru_cache
from typing import Any

from hf_arch.data.options import DataOptions
from hf_arch.recipe.evaluation import EvaluationOptions
from hf_arch.runs.record import RunRecord
from hf_arch.runs.run_settings import flatten_section

_BOOKKEEPING = (
    r"model\.(_name_or_path|architectures|model_type|transformers_version|auto_map|plugins|id2label|label2id|num_labels"
    r"|problem_type|is_encoder_decoder|is_decoder|classifier_dropout|chunk_size_feed_forward|output_\w+|return_dict"
    r"|use_cache|layer_types|(bos|eos|pad)_token_id|intermediate_multiple_of)(\..*)?"
)
"""Of a configuration: what no forward or backward pass of a comparison rests on."""


@lru_cache(maxsize=1024)
def configuration(run: RunRecord) -> Mapping[str, Any]:
    """{dotted key: value} of the whole configuration of a run's model; empty where it was not recorded."""
    recorded = run.experiment.get("config")
    flat: dict[str, Any] = {}
    flatten_section("model", recorded if isinstance(recorded, dict) else {}, flat)
    return {key: normal(value) for key, value in flat.items() if not re.fullmatch(_BOOKKEEPING, key)}


@lru_cache(maxsize=1024)
def given(run: RunRecord) -> Mapping[str, Any]:
    """{dotted key: value} of everything that the recipe of a run gives."""
    flat: dict[str, Any] = {}
    for section in ("model", "data", "probe", "training", "evaluation"):
        flatten_section(section, run.config.get(section), flat)
    return {key: normal(value) for key, value in flat.items()}


def setting(run: RunRecord, key: str) -> Any:
    """What `key` was for this run: by its whole configuration, else by its recipe, else by default; None where none of
    them says."""
    known = configuration(run)
    if key in known:
        return known[key]
    if of_section := _below(known, key):
        return of_section
    if mixed := of_a_part(run, key):
        return known[mixed]
    recipe = given(run)
    if key in recipe:
        return recipe[key]
    return _below(recipe, key) or default(key)


def of_a_part(run: RunRecord, key: str) -> str | None:
    """The key that an option has which a recipe gives without its part, as `model.expand_k` of a mixer; None for a
    field of the model itself, which a mixer may have an option of the same name for."""
    known, name = configuration(run), key.removeprefix("model.")
    if key in known:
        return None
    return next((long for long in known if long.startswith("model.mixer") and long.endswith(f".{name}")), None)


@cache
def default(key: str) -> Any:
    """What a key of a recipe is where nothing gives it; None for a key of the model, whose architecture says it."""
    section, _, name = key.partition(".")
    if section == "training":
        return _of_training().get(name)
    options = {"data": DataOptions, "evaluation": EvaluationOptions}.get(section)
    found = [one.default for one in fields(options) if one.name == name] if options else []
    return normal(found[0]) if found and found[0] is not MISSING else None


@cache
def _of_training() -> dict[str, Any]:
    """Defaults of transformers with ours. Imported late: records are compared without torch where this is not asked."""
    from hf_arch.training.arguments import DEFAULTS, TrainingArguments

    theirs = {one.name: one.default for one in fields(TrainingArguments) if one.default is not MISSING}
    return {name: normal(value) for name, value in {**theirs, **DEFAULTS}.items()}


def normal(value: Any) -> Any:
    """The same for equal numbers, and for lists of them."""
    if isinstance(value, (list, tuple)):
        return [normal(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: normal(entry) for key, entry in value.items()}
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return str(value) if hasattr(value, "value") else value  # an enumeration of transformers


def _below(flat: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """The section that begins at `key`, by what follows it; None where there is none."""
    found = {long.removeprefix(f"{key}."): value for long, value in flat.items() if long.startswith(f"{key}.")}
    return found or None
