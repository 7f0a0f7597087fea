"""A probe as a run: the same folder and files as a training run, so that sets, tables and reports take it as one.

`results.json` has, beside the numbers of every run, `accuracy`, the share of right answers of the final weights on the
test rows, `accuracy_macro`, its mean over the classes, and as extras `best_accuracy` and `best_accuracy_macro`, the
best evaluation of the run (chosen on the test rows, so optimistic). Losses are nats per answer. A run that was
interrupted begins anew: it lasts minutes.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, set_seed

import hf_arch
from hf_arch.core.files import to_jsonable
from hf_arch.core.quiet import quiet_libraries
from hf_arch.data.order import SeededOrder
from hf_arch.numerics import NUMERICS_VERSION
from hf_arch.recipe.build import build_config, changed_initialisation
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import METRICS_FILE, MODEL_DIR
from hf_arch.runs.model_report import model_report
from hf_arch.runs.plugins import keep_plugins
from hf_arch.runs.provenance import order_fingerprint, provenance
from hf_arch.runs.record import write_config, write_results
from hf_arch.training.first_look import first_look
from hf_arch.training.memory import PeakMemory
from hf_arch.training.probes import Learned, ProbeTraining, learn_probe

EPOCHS = 16


def probe_training(recipe: Recipe, rows: int) -> ProbeTraining:
    """The options of the recipe's `training` section for a probe of `rows` train rows."""
    assert recipe.probe is not None
    setting = recipe.probe.settings
    values = {**setting.defaults, **recipe.training}
    epochs = values.pop("num_train_epochs", EPOCHS)
    if "num_train_epochs" in recipe.training and "max_steps" not in recipe.training:
        values.pop("max_steps", None)
    stop = recipe.probe.stop_accuracy
    if stop is None:
        stop = 0.99 if setting.source is None else setting.source.stop_accuracy
    batch = min(values.get("per_device_train_batch_size", ProbeTraining.per_device_train_batch_size), rows)
    values.setdefault("max_steps", max(1, round(epochs * rows / batch)))
    values["lr_scheduler_kwargs"] = values.get("lr_scheduler_kwargs") or {}
    return ProbeTraining(**values, stop_accuracy=stop)


def run_probe(recipe: Recipe, folder: Path, quiet: bool = False) -> dict[str, Any]:
    """Learns the probe of `recipe` in `folder` and returns what it wrote to `results.json`."""
    assert recipe.probe is not None
    seed = recipe.training.get("seed", 0)
    train, test = (recipe.probe.data(split, seed) for split in ("train", "test"))  # type: ignore[arg-type]
    config = build_config(recipe)
    options = probe_training(recipe, len(train.inputs))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = model_report(config, recipe.sequence_length)
    name = recipe.experiment.name or report["architecture"]
    fingerprint = hashlib.sha256(recipe.data_key.encode()).hexdigest()
    started = time.time()
    plugins = recipe.plugins
    recipe, copies = keep_plugins(recipe, folder)
    _write_config(recipe, folder, name, seed, fingerprint, config, copies)
    facts = {
        "name": name,
        "architecture": report["architecture"],
        "architecture_name": report["name"],
        "components": report["components"],
        "hypothesis": recipe.experiment.hypothesis,
        "seed": seed,
        "learning_rate": options.learning_rate,
        "precision": "fp32",
        **{key: report[key] for key in ("params_total", "params_trainable", "params_active", "params_embedding")},
        "flops_per_token": report["flops_per_token_train"],
        "state_bytes": report["state_bytes"],
        "sequence_length": recipe.sequence_length,
        "data_fingerprint": fingerprint,
        "tokenizer_fingerprint": f"{train.vocab_size} ids",
        "order_fingerprint": order_fingerprint(SeededOrder(len(train.inputs), seed), f"{fingerprint} {seed}"),
        "init_overridden": bool(changed_initialisation(recipe, config)),
    }

    def write(status: str, reason: str, **numbers: Any) -> dict[str, Any]:
        ended = {"status": status, "wall_seconds": time.time() - started}
        results = {**facts, **numbers, **ended, "provenance": {**provenance(device, plugins), "exit_reason": reason}}
        return write_results(folder, results)

    metrics = folder / METRICS_FILE
    metrics.write_text("")

    def log(row: Any) -> None:
        with metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(to_jsonable(row), allow_nan=False) + "\n")
        if not quiet:
            text = f"{name}: step {row['step']}/{options.max_steps}: loss {row['loss']:.4f}"
            print(f"{text}, accuracy {row['val_accuracy']:.3f}", file=sys.stderr, flush=True)

    write("running", "running")
    try:
        memory = PeakMemory(device)
        set_seed(seed)
        model = AutoModelForCausalLM.from_config(config).to(device)
        facts |= first_look(model, test.inputs[:1])
        assert recipe.probe is not None
        source = recipe.probe.settings.source
        learned = learn_probe(
            model, train, test, options, log, device, mad_decoder=source is not None and source.mad_decoder
        )
        with quiet_libraries():
            model.save_pretrained(str(folder / MODEL_DIR))
    except KeyboardInterrupt:
        write("interrupted", "interrupted by the user")
        raise
    except BaseException as error:
        write("failed", f"{type(error).__name__}: {error}")
        raise
    batch = min(options.per_device_train_batch_size, len(train.inputs))
    numbers = _numbers(learned, options, batch * train.inputs.shape[1])
    return write("completed", "completed", **numbers, peak_memory_bytes=memory.read())


def _numbers(learned: Learned, options: ProbeTraining, tokens_per_step: int) -> dict[str, Any]:
    last = learned.final
    return {
        "accuracy": last.accuracy,
        "accuracy_macro": last.accuracy_macro,
        "best_accuracy": learned.best.accuracy,
        "best_accuracy_macro": max(score.accuracy_macro for score in learned.scores),
        "final_val_loss": last.loss,
        "final_train_loss": learned.train_loss,
        "steps": learned.steps,
        "stopped_early": learned.steps < options.max_steps,
        "tokens_seen": learned.steps * tokens_per_step,
        "train_tokens_per_second": learned.tokens_per_second,
    }


def _write_config(
    recipe: Recipe, folder: Path, name: str, seed: int, fingerprint: str, config: Any, copies: dict[str, Any]
) -> None:
    facts = {
        "name": name,
        "seed": seed,
        "data_fingerprint": fingerprint,
        "hf_arch": hf_arch.__version__,
        "numerics": NUMERICS_VERSION,
        "config": json.loads(config.to_json_string(use_diff=False)),
        "plugins": copies,
    }
    write_config(folder, recipe, facts)
