"""Everything in which two sides differ and which is not declared as the question is named, and none of it is decided.

The traps are of no list: what a run's whole configuration says is compared, so that another key of the same kind is
seen too. What only looks different, since one recipe writes out what the other leaves to a default, is decided.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from hf_arch.models.configuration import ArchConfig
from tests.experiments.synthetic import write_run
from tests.traps.test_planted import SEEDS, judged
from tests.traps.test_sides import declared, full_config, results

Given = dict[str, Any]


def of(section: str, **values: Any) -> Given:
    return {"config": {section: values}}


def ran(**facts: Any) -> Given:
    """What a run wrote about itself."""
    return {"config": {"run": facts}}


TRAPS: dict[str, tuple[str, tuple[Given, Given]]] = {
    "embeddings eight times as large": ("embedding scale", declared("model", embedding_multiplier=8.0)),
    "embeddings that the architecture scales": (
        "embedding scale",
        (full_config(embedding_multiplier=11.3), full_config(embedding_multiplier=1.0)),
    ),
    "logits divided": ("embedding scale", declared("model", logits_scaling=4.0)),
    "a penalty of large logits": ("losses", declared("model", max_logit_penalty=1e-4)),
    "another coefficient of a loss": (
        "losses",
        (full_config(losses=[{"type": "z_loss", "weight": 1e-3}]), full_config(losses=[{"type": "z_loss"}])),
    ),
    "dropout that the architecture has": (
        "dropout",
        (full_config(attention_dropout=0.1), full_config(attention_dropout=0.0)),
    ),
    "another base of positions": ("one change", declared("model", position={"type": "rope", "base": 1e6})),
    "another theta": ("one change", declared("model", rope_parameters={"rope_theta": 1e6})),
    "another epsilon": ("one change", declared("model", norm_eps=1e-3)),
    "another activation": ("one change", declared("model", hidden_act="relu")),
    "normed queries and keys": ("one change", declared("model", qk_norm=True)),
    "logits capped": ("one change", declared("model", final_logit_softcapping=30.0)),
    "a longer maximum": ("one change", declared("model", max_position_embeddings=4096)),
    "canon layers": ("one change", declared("model", sites=[{"type": "canon"}])),
    "hashed embeddings": ("one change", declared("model", embeddings=[{"type": "ngram"}])),
    "layers run four times": ("one change", declared("model", depth={"type": "loops", "times": 4})),
    "another residual stream": ("one change", declared("model", stream={"type": "hyper"})),
    "a norm of one seed": ("one change", ({"config": lambda s: {"model": {"norm_eps": 1e-3 if s == 1 else 1e-6}}}, {})),
    "more processes, a larger batch": ("settings", (ran(global_batch_size=64), ran(global_batch_size=16))),
    "rows of another length than the recipe's": (
        "settings",
        (results(sequence_length=512), results(sequence_length=256)),
    ),
    "begun from another run": ("resumed", (ran(branch={"folder": "../other", "step": 50}), {})),
    "decay of norms": ("settings", declared("training", weight_decay_exempt=[])),
    "averaged weights": ("settings", declared("training", average_checkpoints=8)),
    "a longer warm-up": ("schedule", declared("training", warmup_steps=100)),
    "evaluated on another part": ("rows", declared("evaluation", rows="claim")),
    "data not recorded": ("recorded", (results(data_fingerprint=None), {})),
    "initialisation not recorded": ("recorded", (results(init_overridden=None), {})),
    "kernels not recorded": ("recorded", (results(kernels=None), {})),
    "branches not measured": ("recorded", (results(branch_scale=None), {})),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_what_differs_beside_the_question_is_named_and_not_decided(trap: str, tmp_path: Path) -> None:
    check, (first, second) = TRAPS[trap]
    comparison, verdict = judged(tmp_path, first, second)
    assert verdict.outcome == "confounded", verdict.evidence
    assert check in verdict.confounds, verdict.confounds
    assert any(finding.check == check and finding.severity == "violation" for finding in comparison.findings)


def _other(value: Any) -> Any:
    return {bool: lambda v: not v, int: lambda v: v + 3, float: lambda v: v + 0.25, str: lambda v: f"not-{v}"}.get(
        type(value), lambda v: {"type": "planted"}
    )(value)


NOT_ASKED_HERE = re.compile(
    r"model_type|hidden_size|num_\w+|head_dim|intermediate_\w+|vocab_size|mixer|\w+_token_id|use_cache|output_\w+|return_\w+"
    r"|is_\w+|chunk_size\w*"
)
"""Sizes, the mixer itself, and what no loss rests on."""
DEFAULTS = ArchConfig()
KEYS = {
    key: value
    for key, value in DEFAULTS.to_dict().items()
    if key in vars(DEFAULTS) and not NOT_ASKED_HERE.fullmatch(key)
}


@pytest.mark.parametrize("key", sorted(KEYS))
def test_no_key_of_a_model_can_change_beside_the_architecture(key: str, tmp_path: Path) -> None:
    """Whichever key of the config one side sets as well: nobody had to think of it."""
    planted = _other(KEYS[key])
    question = {"question": ["model.architecture", f"model.{key}"]}
    first = {"config": {"model": {key: planted}, "run": {**question, "config": {key: planted}}}}
    second = {"config": {"run": {**question, "config": {key: KEYS[key]}}}}
    _, verdict = judged(tmp_path, first, second)
    assert verdict.outcome == "confounded", (key, verdict.evidence)


def test_a_field_of_the_model_is_no_option_of_a_mixer_that_has_one_of_that_name(tmp_path: Path) -> None:
    question = {"question": ["model.architecture", "model.position"]}
    mixer = {"type": "attention", "position": "none"}
    first = {"model": {"position": "none"}, "run": {**question, "config": {"position": "none", "mixer": mixer}}}
    second = {"run": {**question, "config": {"position": "rope", "mixer": {"type": "gla"}}}}
    _, verdict = judged(tmp_path, {"config": first}, {"config": second})
    assert verdict.outcome == "confounded" and "one change" in verdict.confounds, verdict.evidence


def test_what_an_architecture_brings_is_named(tmp_path: Path) -> None:
    comparison, verdict = judged(tmp_path, full_config(norm_eps=1e-5), full_config(norm_eps=1e-6))
    [named] = [finding for finding in comparison.findings if finding.check == "brought along"]
    assert named.severity == "note" and "model.norm_eps (1e-05: gla; 1e-06: llama)" in named.sentence
    assert verdict.outcome == "supported"


def test_values_are_spelt_as_in_a_recipe_and_do_not_fill_a_page(tmp_path: Path) -> None:
    few, _ = judged(tmp_path / "few", full_config(own=True, other=None), full_config(own=False, other=7))
    keys = [f"own_{number}" for number in range(9)]
    many, _ = judged(
        tmp_path / "many", full_config(**{key: [1] * 40 for key in keys}), full_config(**dict.fromkeys(keys, 2))
    )
    said = [next(f.sentence for f in each.findings if f.check == "brought along") for each in (few, many)]
    assert "model.own (true: gla; false: llama)" in said[0] and "model.other (null: gla; 7: llama)" in said[0]
    assert said[1].endswith(f" {', '.join(f'model.{key}' for key in keys)}.")


def test_models_of_one_recipe_do_not_differ(tmp_path: Path) -> None:
    """The question is of training; the models differ in what no recipe says."""

    def one(eps: float, decay: float) -> Given:
        own = {"question": ["training.weight_decay"], "config": {"norm_eps": eps}}
        config = {"model": {"architecture": "gla"}, "training": {"weight_decay": decay}, "run": own}
        return {"config": config, **results(architecture="gla")}

    _, verdict = judged(tmp_path / "apart", one(1e-5, 0.0), one(1e-6, 0.1), names=("with", "without"))
    assert verdict.outcome == "confounded" and "one change" in verdict.confounds
    _, verdict = judged(tmp_path / "alike", one(1e-6, 0.0), one(1e-6, 0.1), names=("with", "without"))
    assert verdict.outcome == "supported", verdict.evidence


def resolved(first: Given, second: Given, **config: Any) -> tuple[Given, Given]:
    """Two recipes of which the models have one configuration."""
    return tuple(  # type: ignore[return-value]
        {"config": {**side.get("config", {}), "run": {"config": config}}} for side in (first, second)
    )


HONEST: dict[str, tuple[Given, Given]] = {
    "a default of training written out": (of("training", max_grad_norm=1.0, label_smoothing_factor=0), {}),
    "our default of training written out": (of("training", adam_beta2=0.95), {}),
    "a default of the evaluation": (of("evaluation", rows="all"), {}),
    "a default of the data": (of("data", isolate_documents=False), {}),
    "a number written in two ways": (of("training", warmup_steps=8.0), of("training", warmup_steps=8)),
    "a default of the model": resolved(of("model", norm_eps=1e-6), {}, norm_eps=1e-6),
    "no dropout, written out": resolved(of("model", residual_dropout=0.0), {}, residual_dropout=0.0),
    "a part by its name and by its section": resolved(
        of("model", ffn="glu"), of("model", ffn={"type": "glu"}), ffn={"type": "glu"}
    ),
    "what one says since the other's architecture has it": resolved(
        of("model", norm="rmsnorm", tie_word_embeddings=True), {}, norm="rmsnorm", tie_word_embeddings=True
    ),
    "an option of the mixer without its section": (
        {"config": {"model": {"expand_k": 0.5}, "run": {"config": {"mixer": {"type": "gla", "expand_k": 0.5}}}}},
        {"config": {"run": {"config": {"mixer": {"type": "attention"}}}}},
    ),
    "how often it was logged and saved": (of("training", logging_steps=50, save_total_limit=1), {}),
    "what transformers keeps in a config": (full_config(use_cache=False), full_config(use_cache=True)),
    "one batch on other processes": (
        {**ran(global_batch_size=16), **results(launch={"processes": 4})},
        {**ran(global_batch_size=16), **results(launch={"processes": 1})},
    ),
    "both begun from their trunks": tuple([ran(branch={"folder": "../x", "step": 50})] * 2),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("difference", HONEST)
def test_what_only_looks_different_is_decided(difference: str, tmp_path: Path) -> None:
    first, second = HONEST[difference]
    question = ["model.architecture", "model.expand_k"]
    for side in (first, second):
        side.setdefault("config", {}).setdefault("run", {}).setdefault("question", question)
    _, verdict = judged(tmp_path, first, second)
    assert verdict.outcome == "supported", (verdict.confounds, verdict.evidence)


def test_vary_names_what_goes_with_an_architecture(tmp_path: Path) -> None:
    own = {"vary": ["model.architecture", "model.position"], "question": ["model.architecture", "model.position"]}
    first = {"config": {"model": {"position": "rope"}, "run": own}}
    _, verdict = judged(tmp_path, first, {"config": {"run": own}})
    assert verdict.outcome == "supported", verdict.evidence


def test_several_changes_of_one_architecture_are_said(tmp_path: Path) -> None:
    """No architecture is named by the claim: it is about the runs, as the recipe made them."""
    asked = {"question": ["model.norm", "model.position"]}
    for seed in SEEDS:
        for name, model, loss in (("both", {"norm": "layernorm", "position": "rope"}, 1.5), ("none", {}, 1.6)):
            write_run(
                tmp_path,
                name,
                seed,
                loss=loss + random.Random(f"{name}-{seed}").gauss(0, 0.002),
                config={"model": {"architecture": "gla", **model}, "run": asked},
                results={"architecture": "gla"},
                hypothesis="both better than none",
            )
    comparison = compare_runs(tmp_path)
    said = next(finding for finding in comparison.findings if finding.check == "one change")
    assert said.severity == "note" and "model.norm, model.position" in said.sentence
    assert comparison.verdicts[0].outcome == "supported"
