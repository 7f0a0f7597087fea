"""What a set of runs asks: the keys in which they differ, and which checks those keys are about.

`experiment.vary` names the question; without it, it is what the recipe's `runs` and `matrix` change. What is asked is
no confound of itself: runs that differ in `training.weight_decay` alone ask about the optimiser, and the audit notes
the difference. Runs that differ in that and in the architecture ask about neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from hf_arch.analysis.resolved import configuration, given, of_a_part, setting
from hf_arch.runs.record import RunRecord
from hf_arch.runs.run_settings import BOOKKEEPING, flatten_section

SIZES = (
    r"model\.(.*\.)?(hidden_size|num_\w*(layers|heads|experts)\w*|head_dim|intermediate_size|vocab_size|.*expand.*"
    r"|.*state_size)"
)
ABOUT = {
    "tokens": r"training\.(max_steps|num_train_epochs|per_device_train_batch_size|gradient_accumulation_steps)"
    r"|data\.(sequence_length|max_train_tokens)",
    "data": r"data\..*",
    "rows": r"evaluation\..*",
    "learning rate": r"training\.learning_rate",
    "schedule": r"training\.(lr_scheduler.*|warmup.*)",
    "optimiser": r"training\.(optim.*|weight_decay|adam_.*|max_grad_norm)",
    "precision": r"training\.(precision|tf32|bf16.*|fp16.*)|model\.dtype",
    "initialisation": r"model\.(.*\.)?\w*(init|rescale)\w*(\..*)?|model\.parametrization(\..*)?",
    "branch scale": r"model\.(.*\.)?\w*(init|rescale|scale|multiplier)\w*|model\.(stream|norm_)\S*",
    "short convolution": r"model\.(.*\.)?\w*conv\w*",
    "dropout": r"model\.(.*\.)?\w*dropout",
    "losses": r"model\.(losses(\..*)?|max_logit_penalty)",
    "embedding scale": r"model\.(embedding_multiplier|logits_scaling)",
    "tying": r"model\.tie_word_embeddings",
    "parameters": SIZES,
    "non-embedding parameters": SIZES + r"|model\.tie_word_embeddings",
    "active parameters": SIZES,
    "width": SIZES,
    "depth": SIZES,
    "flops": SIZES + r"|data\.sequence_length",
    "state": SIZES + r"|data\.sequence_length",
    "settings": r"(training|data|evaluation|probe)\..*",
}
"""Check -> the keys of a recipe that it is about."""
ARCHITECTURE = r"model\.(architecture|mixer)(\..*)?"
"""Keys that make the question one across architectures."""
TOKENIZER = r"data\.(vocab_size|tokenizer)"
"""Keys that make the question one about the tokenizer."""
WITH_A_TOKENIZER = r"training\.(max_steps|num_train_epochs)|model\.vocab_size"
"""What may change with it: as many steps as give the same bytes, and the rows of the embedding."""
FOLLOW_A_TOKENIZER = ("parameters", "active parameters", "flops", "settings")
"""Checks of what the tokenizer decides; non-embedding parameters are the same."""
TOKENIZER_METRICS = ("bits_per_byte",)
"""Numbers that mean the same under any tokenizer."""
_OWN_CHECKS = ("initialisation", "short convolution", "dropout", "losses", "tying", "precision", "embedding scale")
"""Checks of settings of the model."""
_COMPARED = ("model", "data", "probe", "training", "evaluation")
_OF_A_RUN = (
    rf"training\.({BOOKKEEPING})(\..*)?|model\.plugins.*"
    r"|evaluation\.(prompt|new_tokens|temperature|top_k|speed\w*)"
)
_COMPUTED_AGAIN = (
    r"training\.((gradient|activation)_checkpointing(_kwargs(\.use_reentrant)?)?|torch_empty_cache_steps"
    r"|full_determinism|ddp_(backend|timeout|bucket_cap_mb|find_unused_parameters|static_graph))"
)
"""Keys that move times and memory alone: the same numbers are computed again, or in other pieces."""
_COMPILED = r"training\.torch_compile(_\w+)?"
_WHEN_SCORED = r"training\.eval_(strategy|steps|delay|on_start)"
_MATCHED = r"model\.(.*\.)?(hidden_size|intermediate_size)"


@lru_cache(maxsize=1024)
def flat_config(run: RunRecord) -> Mapping[str, Any]:
    """{dotted key: value} of the recipe that a run was trained by, without what every run has to itself."""
    flat: dict[str, Any] = {}
    for section in _COMPARED:
        flatten_section(section, run.config.get(section), flat)
    matched = run.experiment.get("match")
    leave_out = [_OF_A_RUN, *([_MATCHED] if matched else [])]
    if isinstance(matched, dict) and matched.get("vary"):
        leave_out.append(rf"model\.{re.escape(str(matched['vary']))}")
    return {key: value for key, value in flat.items() if not any(re.fullmatch(one, key) for one in leave_out)}


def changed_keys(runs: Sequence[RunRecord]) -> frozenset[str]:
    """The keys of their recipes in which runs differ, where what they came to differs too."""
    return _changed_keys(tuple(runs))


@lru_cache(maxsize=256)
def _changed_keys(runs: tuple[RunRecord, ...]) -> frozenset[str]:
    """The same: each of many checks of the same runs asks for it."""
    recipes = {run: flat_config(run) for run in runs if run.config}
    changed = {key for key in {key for flat in recipes.values() for key in flat} if differs(recipes, key)}
    changed -= set(computed_otherwise(runs))
    tried = {run.name: set() for run in runs}  # type: dict[str, set[float | None]]
    for run in runs:
        tried[run.name].add(run.learning_rate)
    if any(len(rates) > 1 for rates in tried.values()) or any(run.experiment.get("learning_rates") for run in runs):
        changed.discard("training.learning_rate")  # tuned, which has a check of its own
    return frozenset(changed)


def computed_otherwise(runs: Sequence[RunRecord]) -> list[str]:
    """The keys in which runs compute the same numbers in another way: an evaluation in other batches, a step of as many
    rows in smaller ones, activations computed again, a compiled model, more evaluations on the way. They move times and
    memory, and of a loss the last digits; where they move more (`_same_when`), they are not among these."""
    recipes = {run: given(run) for run in runs if run.config}
    keys = sorted({key for flat in recipes.values() for key in flat if key.startswith("training.")})
    pattern = _same_when(recipes)
    return [key for key in keys if re.fullmatch(pattern, key) and differs(recipes, key)]


def asks_how(runs: Sequence[RunRecord]) -> bool:
    """Whether how the same numbers are computed is all that these runs change: a question of speed and memory."""
    return bool(computed_otherwise(runs)) and not changed_keys(runs)


def _same_when(recipes: Mapping[RunRecord, Mapping[str, Any]]) -> str:
    """A pattern of such keys, by what else runs say: steps of as many rows, fp32 (a compiled model keeps what bf16
    would round), and nothing that rests on an evaluation on the way (which weights are kept, when a probe ends)."""
    same = [r"training\.per_device_eval_batch_size", _COMPUTED_AGAIN]
    sizes = {run.experiment.get("global_batch_size") for run in recipes}
    if len(sizes) == 1 and None not in sizes:
        same.append(r"training\.(per_device_train_batch_size|gradient_accumulation_steps)")
    if {run.precision for run in recipes} == {"fp32"}:
        same.append(_COMPILED)
    if not any(run.config.get("probe") or _rests_on_evaluations(flat) for run, flat in recipes.items()):
        same.append(_WHEN_SCORED)
    return "|".join(same)


def _rests_on_evaluations(recipe: Mapping[str, Any]) -> bool:
    plateau = "plateau" in str(recipe.get("training.lr_scheduler_type"))
    return plateau or recipe.get("training.load_best_model_at_end") is True


def differs(recipes: Mapping[RunRecord, Mapping[str, Any]], key: str) -> bool:
    """Whether runs differ in a key: by what their recipes say, and by what it came to."""
    if len({repr(flat.get(key)) for flat in recipes.values()}) < 2:
        return False
    return key.partition(".")[0] not in _COMPARED or len({repr(setting(run, key)) for run in recipes}) > 1


def beside_the_architecture(runs: Sequence[RunRecord]) -> list[str]:
    """Of runs of several architectures: what of the model their recipes change besides, and neither `vary` names nor a
    check of its own looks at. Options of a mixer and sizes are part of the architecture."""
    changed = changed_keys(runs)
    if not is_across_architectures(runs):
        return []
    own = "|".join([ARCHITECTURE, SIZES, r"model\.branch_scales", *(ABOUT[check] for check in _OWN_CHECKS)])
    named = varied(runs)
    return sorted(
        key
        for key in changed
        if key.startswith("model.")
        and not re.fullmatch(own, key)
        and not covers(key, named)
        and not any(of_a_part(run, key) for run in runs)
    )


def brought_along(runs: Sequence[RunRecord]) -> list[str]:
    """What of the model no recipe sets and differs all the same: what an architecture, or a part, has by default."""
    known = [run for run in runs if configuration(run)]
    keys = {key for run in known for key in configuration(run)}
    said = tuple({key for run in known for key in given(run)} - {"model.architecture"})
    own = "|".join([r"model\.mixer(\..*)?", SIZES])
    return sorted(
        key
        for key in keys
        if len({repr(configuration(run).get(key)) for run in known}) > 1
        and not covers(key, said)
        and not re.fullmatch(own, key)
    )


def varied(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """`experiment.vary` of the recipes; empty where none declares it."""
    return tuple(dict.fromkeys(str(key) for run in runs for key in run.experiment.get("vary") or ()))


def declared(runs: Sequence[RunRecord]) -> tuple[str, ...] | None:
    """The keys that the recipes say are the question: `vary`, else what `runs` and `matrix` change; None where that
    was not recorded."""
    if named := varied(runs):
        return named
    if any(run.experiment.get("question") is None for run in runs):
        return None
    return tuple(dict.fromkeys(str(key) for run in runs for key in run.experiment["question"]))


def is_asked(check: str, runs: Sequence[RunRecord]) -> bool:
    """Whether a difference that `check` finds is what these runs ask about."""
    pattern = ABOUT.get(check)
    if pattern is None:
        return False
    if any(re.fullmatch(pattern, _full(key)) for key in varied(runs)):
        return True
    if check in FOLLOW_A_TOKENIZER and asks_tokenizer(runs):
        return True
    changed = changed_keys(runs)
    return bool(changed) and all(re.fullmatch(pattern, key) for key in changed)


def asks_tokenizer(runs: Sequence[RunRecord]) -> bool:
    """Whether what these runs change is their tokenizer, with what has to change with it, and nothing else."""
    changed = changed_keys(runs)
    allowed = rf"{TOKENIZER}|{WITH_A_TOKENIZER}"
    return any(re.fullmatch(TOKENIZER, key) for key in changed) and all(re.fullmatch(allowed, key) for key in changed)


def is_across_architectures(runs: Sequence[RunRecord]) -> bool:
    """Whether these runs have different mixers or architectures."""
    if len({run.architecture for run in runs}) > 1:
        return True
    return any(re.fullmatch(ARCHITECTURE, key) for key in changed_keys(runs))


def covers(key: str, named: Sequence[str]) -> bool:
    """Whether one of the `named` keys is `key`, or a section that it lies in."""
    return any(key == _full(name) or key.startswith(f"{_full(name)}.") for name in named)


def _full(key: str) -> str:
    return key if key.partition(".")[0] in _COMPARED else f"model.{key}"
