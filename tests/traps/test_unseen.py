"""Differences that no configuration tells and that were measured of the models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.traps.test_planted import judged, provenance

Given = dict[str, Any]
USUAL = {
    "untracked": 0,
    "gradient_hooks": 0,
    "dtypes": {"float32": 1_200_000},
    "noise": 0.0,
    "mode_gap": 2e-7,
    "products": 1.1,
}


def unseen(**changes: Any) -> Given:
    return {"results": {"unseen": {**USUAL, "callbacks": [], **changes}}}


def of_one_seed(**changes: Any) -> Given:
    return {"results": lambda seed: unseen(**(changes if seed == 3 else {}))["results"]}


def replaced(*names: str, callbacks: tuple[str, ...] = (), attached: tuple[str, ...] = ()) -> Given:
    facts = provenance(replaced=list(names))["results"]
    return {"results": {**facts, **unseen(callbacks=list(callbacks), attached=list(attached))["results"]}}


def steps(counted: int) -> Given:
    """What the optimiser counted of 200 steps."""
    groups = [{"lr": 1e-3, "weight_decay": 0.1, "parameters": 1_200_000}]
    return {"results": {"steps": 200, "optimizer": {"class": "AdamW", "steps": counted, "groups": groups}}}


def halves(training: float, scoring: float, precision: str = "fp32") -> Given:
    """Shares of the products that are in bf16."""
    modes = {"training": training, "scoring": scoring}
    types = {mode: {"bfloat16": share, "float32": 1 - share} for mode, share in modes.items()}
    return {"results": {**unseen(product_types=types)["results"], "precision": precision}}


def random_states(first: str, others: str) -> Given:
    """Where the random numbers of torch stand at the end, of the first seed and of each other one."""

    def of(seed: int) -> Given:
        state = first if seed == 1 else others if others == first else f"{others}-{seed}"
        return unseen(random_states={"torch": state, "numpy": f"state-{seed}"})["results"]

    return {"results": of}


def starts(loaded: int, drawn: int) -> Given:
    """Numbers of a matrix that is one under every seed, and of another that is not."""
    first = {"mixer": ["loaded", loaded]} if loaded else {}
    return {"results": lambda seed: unseen(starts={**first, "head": [f"drawn-{seed}", drawn]})["results"]}


def given_rows(training: str, scored: str, first_step: int = 0) -> Given:
    """Which rows the model was given, of each seed."""

    def of(seed: int) -> Given:
        rows = {"from": first_step, "training": f"{training}-{seed}", "scored": scored}
        return unseen(given=rows)["results"]

    return {"results": of}


def read(*files: str, earlier: tuple[str, ...] = ()) -> Given:
    """One plugin that reads these files, and holds those of an earlier run of its process."""
    before = {"plugin_files_earlier": list(earlier)} if earlier else {}
    return provenance(plugins={"m.py": "a"}, plugin_files=dict.fromkeys((*files, *earlier), "b"), **before)


def left_over(**plugins: str) -> Given:
    return provenance(plugins=plugins, replaced=["hf_arch.training.trainer.ArchTrainer.compute_loss"])


TRAPS: dict[str, tuple[str, tuple[Given, Given]]] = {
    "a memory in a buffer": ("parameters", (unseen(untracked=400_000), unseen())),
    "gradients that a hook clips": ("optimiser", (unseen(gradient_hooks=600_000), unseen())),
    "parameters made in the first forward": ("parameters", (unseen(uncounted=400_000), unseen())),
    "gradients times ten": ("optimiser", (unseen(gradients={"ffn.*.up": [0.1, 400_000]}), unseen())),
    "gradients turned round": ("optimiser", (unseen(gradients={"ffn.*.up": [-1.0, 400_000]}), unseen())),
    "gradients clipped inside": ("optimiser", (unseen(gradients={"ffn.*.up": [40.0, 400_000]}), unseen())),
    "parameters in bf16": ("precision", (unseen(dtypes={"float32": 600_000, "bfloat16": 600_000}), unseen())),
    "dropout of a plugin": ("dropout", (unseen(noise=0.2, mode_gap=0.15), unseen())),
    "dropout in one seed": ("dropout", (of_one_seed(noise=0.2, mode_gap=0.15), unseen())),
    "an average of weights is scored": ("scoring", (unseen(mode_gap=0.003), unseen())),
    "an average of weights in a buffer": (
        "scoring",
        (unseen(mode_gap=0.003, untracked=90_000, reloaded=0.0), unseen()),
    ),
    "an average of weights elsewhere": ("scoring", (unseen(mode_gap=0.003, reloaded=0.003), unseen(reloaded=0.0))),
    "a cost that is not what it does": ("flops", (unseen(products=9.0), unseen())),
    "a cost that says three quarters": ("flops", (unseen(products=1.3, least_products=1.3), unseen())),
    "products in training alone": (
        "flops",
        (unseen(products=1.0, least_products=1.0, training_products=1.5), unseen(training_products=1.0)),
    ),
    "a cost of nothing, and no tokens one at a time": ("flops", (unseen(products=9.0, least_products=None), unseen())),
    "a count of steps in an attribute": ("scoring", (unseen(reloaded=0.2), unseen(reloaded=0.0))),
    "a count of steps in a buffer": ("schedule", (unseen(reloaded=0.0, counts=0.2), unseen(reloaded=0.0, counts=0.0))),
    "the time of day": ("scoring", (unseen(clock=0.2), unseen(clock=0.0))),
    "the time of day on both sides": ("scoring", (unseen(clock=0.2), unseen(clock=0.2))),
    "another context, or several passes": (
        "scoring",
        (unseen(mode_gap=0.1, settled_gap=0.1), unseen(settled_gap=2e-7)),
    ),
    "several passes that cost them too": ("scoring", (unseen(scoring_products=2.0), unseen(scoring_products=1.0))),
    "an average put in place for the score": ("scoring", (unseen(swapped=300_000), unseen(swapped=0))),
    "steps of a part's own": ("optimiser", (unseen(moved=300_000), unseen(moved=0))),
    "a loss of a part's own": ("losses", (unseen(forward_gradients=300_000), unseen(forward_gradients=0))),
    "many more that never learn on one side": ("parameters", (unseen(unmoved=900_000), unseen(unmoved=30_000))),
    "parameters that never learn": ("parameters", (unseen(unmoved=300_000), unseen(unmoved=0))),
    "rates past the schedule": ("schedule", (unseen(rates=4.0), unseen(rates=1.0))),
    "twice the steps": ("optimiser", (steps(400), steps(200))),
    "a cost that says twice as much": ("flops", (unseen(most_work=0.5), unseen(most_work=1.2))),
    "a cost that hides half of the state": ("state", (unseen(held_state=2.0), unseen(held_state=1.0))),
    "a cost that says more state than there is": ("state", (unseen(held_state=0.3), unseen(held_state=1.0))),
    "statistics over the rows that are scored together": ("scoring", (unseen(other_rows=0.1), unseen(other_rows=0.0))),
    "rows scored otherwise in a batch": ("scoring", (unseen(batch_gap=0.02), unseen(batch_gap=0.0))),
    "the same on both sides": ("scoring", (unseen(other_rows=0.1), unseen(other_rows=0.2))),
    "a part in bf16 when it is scored": ("precision", (halves(0.0, 0.3), halves(0.0, 0.0))),
    "a part in bf16": ("precision", (halves(0.3, 0.3), unseen())),
    "a run in bf16 that is scored in fp32": ("precision", (halves(0.9, 0.0, "bf16"), halves(0.9, 0.9, "bf16"))),
    "parameters that are frozen on the way": ("parameters", (unseen(given_up=300_000), unseen(given_up=0))),
    "another model is saved than scored": ("scoring", (unseen(saved=300_000), unseen(saved=0))),
    "clipping that a part changes": ("settings", (unseen(arguments={"max_grad_norm": [1.0, 0.01]}), unseen())),
    "random numbers that a part seeds": ("seeds", (random_states("one", "one"), random_states("one", "other"))),
    "a hook on the optimiser": ("code", (replaced(attached=("AdamW._optimizer_step_pre_hooks",)), replaced())),
    "a mixer that was trained before": ("initialisation", (starts(300_000, 800_000), starts(0, 1_100_000))),
    "a method of the trainer": ("code", (replaced("hf_arch.training.trainer.ArchTrainer.compute_loss"), replaced())),
    "other rows in training": ("order", (given_rows("other", "same"), given_rows("rows", "same"))),
    "other rows in the score": ("rows", (given_rows("rows", "other"), given_rows("rows", "same"))),
    "other bytes of one text": (
        "data",
        ({"results": {"text_bytes": {"held_out": 150}}}, {"results": {"text_bytes": {"held_out": 100}}}),
    ),
    "a mode of the process": ("code", (unseen(process=["mode Watching"]), unseen(process=[]))),
    "betas that a part changes": ("settings", (unseen(settings={"betas": [[0.9, 0.95], [0.5, 0.9]]}), unseen())),
    "moments that a part sets": ("optimiser", (unseen(memory=300_000), unseen(memory=0))),
    "what a plugin left to the others": ("code", (left_over(one="a"), left_over())),
    "what one of two plugins left": ("code", (left_over(one="a"), left_over(two="b"))),
    "parameters that are not there": ("parameters", (unseen(uncounted=-300_000), unseen(uncounted=0))),
    "a dense part that says it is not": ("active parameters", (unseen(touched=1.4), unseen(touched=0.9))),
    "documents that see each other": ("scoring", (unseen(across_documents=0.4), unseen(across_documents=0.0))),
    "other files": ("plugin files", (read("one"), read())),
    "a callback": ("code", (replaced(callbacks=("Average",)), replaced())),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_what_no_configuration_tells_is_named(trap: str, tmp_path: Path) -> None:
    check, (first, second) = TRAPS[trap]
    comparison, verdict = judged(tmp_path, first, second)
    assert verdict.outcome == "confounded" and check in verdict.confounds, verdict.evidence
    assert any("gla" in finding.sentence for finding in comparison.findings if finding.check == check)


HONEST: dict[str, tuple[Given, Given]] = {
    "nothing": (unseen(), unseen()),
    "measured on one side": (unseen(noise=0.1), {}),
    "dropout on both sides": (unseen(noise=0.2, mode_gap=0.15), unseen(noise=0.3, mode_gap=0.2)),
    "biases that balance experts": (unseen(untracked=64), unseen()),
    "the same replaced on both sides": (replaced("torch.nn.init.normal_"), replaced("torch.nn.init.normal_")),
    "a router that leaves out a part": (unseen(gradients={"ffn.*.router": [2.5, 400_000]}), unseen()),
    "quantised on both sides": (
        unseen(gradients={"ffn.*.up": [0.1, 400_000]}),
        unseen(gradients={"ffn.*.up": [0.2, 400_000]}),
    ),
    "parameters as counted": (unseen(uncounted=0, gradients={}), unseen()),
    "a recurrence in chunks": (unseen(products=2.9), unseen(products=0.7)),
    "chunks, counted one at a time too": (unseen(products=3.6, least_products=1.04), unseen(products=0.7)),
    "a backward pass that repeats a part": (unseen(training_products=1.11), unseen(training_products=0.84)),
    "one part of a plugin on both sides": (
        unseen(products=1.5, least_products=1.5),
        unseen(products=1.45, least_products=1.45),
    ),
    "chunks of a part that takes no single tokens": (unseen(products=2.9, least_products=None), unseen()),
    "feature maps that begin as the identity": (starts(9_000, 1_000_000), starts(0, 1_100_000)),
    "loaded on both sides": (starts(300_000, 800_000), starts(300_000, 800_000)),
    "features drawn anew on both sides": (unseen(reloaded=0.2), unseen(reloaded=0.3)),
    "nothing besides weights": (unseen(reloaded=1e-6, counts=0.0, clock=0.0), unseen(reloaded=None)),
    "statistics that follow a batch": (unseen(mode_gap=0.2, settled_gap=0.06, reloaded=0.0), unseen(settled_gap=2e-7)),
    "as much work when it is scored": (unseen(scoring_products=1.05), unseen(scoring_products=1.0)),
    "a loss that is for training alone": (unseen(scoring_products=0.7), unseen(scoring_products=1.0)),
    "nobody but the optimiser": (unseen(moved=0, swapped=0, rates=1.0, forward_gradients=0, unmoved=64), unseen()),
    "the best checkpoint, as asked": (unseen(swapped=None), unseen(swapped=None)),
    "weights kept on a sphere on both sides": (unseen(moved=500_000), unseen(moved=600_000)),
    "steps that were skipped": (steps(199), steps(200)),
    "a cost that counts elementwise work": (unseen(most_work=0.95), unseen(most_work=1.2)),
    "one cost that says more on both sides": (unseen(most_work=0.5), unseen(most_work=0.52)),
    "products that nobody can count": (unseen(uncountable="TypeError: none"), unseen()),
    "state as declared": (unseen(held_state=1.0), unseen(held_state=None)),
    "statistics of a batch": (unseen(mode_gap=0.2, untracked=128, reloaded=0.0), unseen()),
    "rounding in another batch": (unseen(other_rows=2e-3, batch_gap=3e-4), unseen(other_rows=0.0)),
    "a part that keeps fp32 in a run in bf16": (halves(0.5, 0.5, "bf16"), halves(0.9, 0.9, "bf16")),
    "all in fp32": (halves(0.0, 0.0), unseen()),
    "settings that both sides change": (unseen(arguments={"seed": [1, 2]}), unseen(arguments={"seed": [1, 2]})),
    "nothing around the model": (
        unseen(arguments={}, attached=[], given_up=0, saved=0),
        random_states("one", "other"),
    ),
    "the same rows": (given_rows("rows", "same"), given_rows("rows", "same")),
    "rows from another step on": (given_rows("late", "same", first_step=40), given_rows("rows", "same")),
    "a mode on both sides": (unseen(process=["mode Watching"]), unseen(process=["mode Watching"])),
    "a plugin on both sides that replaces": (left_over(one="a", two="b"), left_over(one="a")),
    "a file of an earlier run": (read("one"), read(earlier=("one",))),
    "experts that a token is not given": (unseen(touched=0.98), unseen(touched=None)),
    "documents by themselves": (unseen(across_documents=0.0), unseen(across_documents=2e-4)),
    "rounding": (unseen(mode_gap=1e-5, noise=1e-6), unseen()),
    "rounding in bf16": (unseen(mode_gap=5e-3, dtypes={"bfloat16": 9}), unseen(dtypes={"bfloat16": 8})),
}


@pytest.mark.parametrize("what", HONEST)
def test_an_honest_pair_is_decided(what: str, tmp_path: Path) -> None:
    _, verdict = judged(tmp_path, *HONEST[what])
    assert verdict.outcome == "supported", verdict.evidence
