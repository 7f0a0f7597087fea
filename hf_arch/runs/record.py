"""The record of one run: what `results.json` and `experiment_config.json` say, typed; read and written here alone.

    record = RunRecord.load(folder)            # one line of error where a file is torn, mistyped or too new
    write_results(folder, {...})               # results.json, whole or not at all
    write_config(folder, recipe, facts)        # experiment_config.json: the recipe, and what the run knows of itself

A key that is missing reads as None; JSON that cannot be parsed is a one-line error naming the file. Files without
`schema_version` are those of before version 1, which differs from them by that key alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import finite, read_json, write_json
from hf_arch.core.formats import byte_size, duration, quantity
from hf_arch.recipe.recipe import RUN_FACTS, Recipe
from hf_arch.runs.digest import DIGEST, edited, facts_of_digest, seal_results
from hf_arch.runs.file_shape import check_objects, check_version
from hf_arch.runs.files import CONFIG_FILE, EVALUATION_FILE, METRICS_FILE, RESULTS_FILE, is_run, read_metrics
from hf_arch.runs.items import item_name, item_tasks
from hf_arch.runs.numbers import Number, Reader, measured, numbers_of, read_number

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
CONFIG_SECTIONS = ("model", "data", "probe", "training", "evaluation", "experiment", RUN_FACTS)
SCORED_WEIGHTS = "weights"
"""In evaluation.json, of each task: after how many steps the weights were that it scored."""
STATUSES = ("completed", "failed", "interrupted", "running")

LOSS = Reader.ROWS | Reader.TABLE | Reader.SUMMARY | Reader.CARD
SIZE = Reader.ROWS | Reader.SIZES
SPEED = Reader.ROWS | Reader.TABLE | Reader.SUMMARY | Reader.CARD


@dataclass(frozen=True, eq=False, kw_only=True)
class RunRecord:
    """One run as its folder tells it, equal only to itself.

    Every field but the first and the last three is a key of results.json. Losses are nats per token (of a probe: per
    answer), sizes bytes, speeds tokens per second, times seconds.
    """

    path: Path
    name: str
    status: str = "running"
    architecture: str = "unknown"
    architecture_name: str = "unknown"
    seed: int | None = None
    data_seed: int | None = None
    """Of the order of the data; `seed` where the recipe gives none, which is then of the first weights alone."""
    learning_rate: float | None = None

    params_total: float | None = measured(
        "parameters", quantity, SIZE | Reader.TABLE, column="params", help="parameters, embeddings included"
    )
    params_active: float | None = measured("active parameters", quantity, SIZE)
    params_embedding: float | None = measured("in embeddings", quantity, SIZE)
    params_trainable: float | None = measured("trainable parameters", quantity)
    accuracy: float | None = measured(
        "accuracy", ".3f", Reader.ROWS | Reader.TABLE | Reader.SUMMARY, decimals=3, higher_is_better=True,
        help="share of a probe's right answers, final weights: mean over seeds ± half-width of the 95 % t interval",
    )  # fmt: skip
    accuracy_macro: float | None = measured(
        "accuracy, mean over classes", ".3f", Reader.ROWS | Reader.TABLE, column="macro acc", decimals=3,
        higher_is_better=True, help="the same, averaged over the answers' classes (as MAD reports it)",
    )  # fmt: skip
    best_accuracy: float | None = measured(
        "best accuracy of any evaluation", ".3f", Reader.ROWS, decimals=3, higher_is_better=True
    )
    best_accuracy_macro: float | None = measured(
        "best macro accuracy of any evaluation", ".3f", decimals=3, higher_is_better=True
    )
    final_val_loss: float | None = measured(
        "validation loss", ".4f", LOSS, unit="nats a token", column="val loss", decimals=3,
        help="validation loss in nats per token: mean over seeds ± half-width of the 95 % t interval",
    )  # fmt: skip
    final_val_perplexity: float | None = measured("validation perplexity", ".2f", LOSS, column="ppl", decimals=2)
    bits_per_byte: float | None = measured(
        "bits per byte", ".4f", LOSS, column="bits/byte", help="validation bits per byte", decimals=3
    )
    final_train_loss: float | None = measured(
        "training loss", ".4f", LOSS & ~Reader.TABLE, unit="nats a token", decimals=3
    )
    tokens_seen: float | None = measured("tokens trained on", quantity, Reader.ROWS | Reader.SUMMARY | Reader.CARD)
    train_tokens_per_second: float | None = measured(
        "training speed", quantity, SPEED, unit="tokens/s", column="train tok/s", higher_is_better=True,
        help="tokens a second in training",
    )  # fmt: skip
    decode_tokens_per_second: float | None = measured(
        "generation speed", quantity, SPEED, unit="tokens/s", column="decode tok/s", higher_is_better=True,
        help="tokens a second in generation",
    )  # fmt: skip
    prefill_tokens_per_second: float | None = measured(
        "prefill speed", quantity, unit="tokens/s", higher_is_better=True
    )
    mfu: float | None = measured("model FLOPs utilisation", ".1%", LOSS & ~Reader.TABLE, higher_is_better=True)
    peak_memory_bytes: float | None = measured("peak memory in training", byte_size, LOSS, column="memory")
    flops_per_token: float | None = measured(
        "FLOPs per token", quantity, SIZE | Reader.TABLE, column="FLOPs/token", help="training FLOPs for one token"
    )
    state_bytes: float | None = measured(
        "cache or state", byte_size, SIZE | Reader.TABLE, column="state",
        help="bytes of cache or state per sequence while decoding",
    )  # fmt: skip
    wall_seconds: float | None = measured("wall time", duration, LOSS & ~Reader.TABLE)
    sequence_length: float | None = measured("sequence length", ".0f", unit="tokens")
    val_tokens: float | None = measured("validation tokens", quantity)
    steps: float | None = measured("optimiser steps", ".0f")
    skipped_steps: float | None = measured("skipped steps", ".0f")
    loss_spikes: float | None = measured("loss spikes", ".0f")

    plugin_metrics: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """{name: {"value": ..., "words": ..., "unit": ..., ...}} of the metrics of plugins: each with what it is."""
    components: Mapping[str, Any] = field(default_factory=dict, repr=False)
    hypothesis: str = field(default="", repr=False)
    precision: str | None = None
    precision_measured: Mapping[str, Any] | None = field(default=None, repr=False)
    """Where `training.precision: auto` was decided by measuring: the speeds in fp32 and bf16 behind it."""
    launch: Mapping[str, Any] | None = field(default=None, repr=False)
    data_fingerprint: str | None = field(default=None, repr=False)
    text_fingerprint: str | None = field(default=None, repr=False)
    """Hash of tokens that were read, where `data_fingerprint` is of what the corpus says of itself."""
    tokenizer_fingerprint: str | None = field(default=None, repr=False)
    order_fingerprint: str | None = field(default=None, repr=False)
    text_bytes: Mapping[str, Any] | None = field(default=None, repr=False)
    """{"seen", "scored", "held_out": bytes, "fingerprint"} of the text itself (`hf_arch.data.text_bytes`)."""
    machine_load: Mapping[str, Any] | None = field(default=None, repr=False)
    """{"cores", "threads", "start", "end", "processor_share"} (`hf_arch.training.machine_load`)."""
    init_overridden: bool | None = field(default=None, repr=False)
    init_fingerprint: str | None = field(default=None, repr=False)
    """Hash of the first weights: equal for runs that began from the same ones."""
    initial_loss: float | None = field(default=None, repr=False)
    """Of one row before the first step, each kind of token counted once: about ln V for weights drawn at random."""
    branch_scale: Mapping[str, Any] | None = field(default=None, repr=False)
    """{"mixer": [...], "ffn": [...]}: by layer, rms of what the sublayer writes over rms of the residual stream, before
    the first step; None where a layer has none."""
    short_convolution: Mapping[str, Any] | None = field(default=None, repr=False)
    """{"layers": [...]}: the layers in which a depthwise causal convolution was found; empty where none was."""
    optimizer: Mapping[str, Any] | None = field(default=None, repr=False)
    """{"class": ..., "code": hash of its plugin, "groups": [...]}: what stepped the parameters, each group with its
    settings and number of them."""
    kernels: str | None = None
    """What computed the recurrences and attention: "torch", "compiled C" (ops/native.py), or the package that did."""
    later_tokens: float | None = field(default=None, repr=False)
    """By how much logits change, against their rms, where only later tokens do: 0 for a causal model."""
    scoring_drift: float | None = field(default=None, repr=False)
    """By how much the logits of one row changed, against their rms, while the model was scored."""
    seen_share: float | None = field(default=None, repr=False)
    """The share of what the run is scored on that stands in what it was trained on (`hf_arch.data.seen_rows`)."""
    repeated_share: float | None = field(default=None, repr=False)
    """The share of the text to train on that stands in it more than once."""
    unseen: Mapping[str, Any] | None = field(default=None, repr=False)
    """What no configuration tells of the trained model (`hf_arch.training.unseen_parts`)."""
    stopped_early: bool | None = field(default=None, repr=False)
    attribution: str | None = field(default=None, repr=False)
    sample: Any = field(default=None, repr=False)
    error: str | None = field(default=None, repr=False)
    retry: bool | None = field(default=None, repr=False)
    """False where the run failed in a way that another try would repeat: its configuration, or a loss that diverged."""
    changes: Any = field(default=None, repr=False)
    """What was changed when the run was resumed or extended, a list; empty where nothing was."""
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    schema_version: int = SCHEMA_VERSION
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """experiment_config.json: the sections of the recipe, and `run`."""
    others: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Keys of results.json that no field names."""

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads a run folder. ConfigError where it holds none, its JSON is corrupt or newer, or a number is none."""
        folder = Path(folder)
        if not is_run(folder):
            raise ConfigError(f"{folder}: not a run folder (neither {RESULTS_FILE} nor {CONFIG_FILE} in it)")
        config = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).exists() else {}
        results = read_json(folder / RESULTS_FILE) if (folder / RESULTS_FILE).exists() else {}
        check_version(folder / CONFIG_FILE, _section(config, RUN_FACTS).get("schema_version"), SCHEMA_VERSION)
        return cls.from_files(folder, results, config)

    @classmethod
    def from_files(cls, folder: Path, results: Mapping[str, Any], config: Mapping[str, Any]) -> Self:
        """The record that the contents of the two files make. Raises ConfigError as `load` does."""
        file = folder / RESULTS_FILE
        if "final_accuracy" in results:  # until NUMERICS_VERSION 2 `accuracy` was that of the best evaluation
            results = {**results, "accuracy": results["final_accuracy"], "best_accuracy": results.get("accuracy")}
            results.pop("final_accuracy")
        check_version(file, results.get("schema_version"), SCHEMA_VERSION)
        values: dict[str, Any] = {
            key: value for key, value in results.items() if key in RESULT_KEYS and value is not None
        }
        for key in ("seed", "data_seed", "learning_rate", *NUMBERS):
            value = values.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise ConfigError(f"{file}: {key}: expected a number or null, found {value!r}")
        check_objects(file, results, OBJECTS)
        check_objects(folder / CONFIG_FILE, config, CONFIG_SECTIONS)
        config = {key: value for key, value in config.items() if value is not None or key not in CONFIG_SECTIONS}
        status = str(results.get("status", "running"))
        if status not in STATUSES:
            raise ConfigError(f"{file}: status: {status!r} is not known; allowed: {', '.join(STATUSES)}")
        model, training, facts = (_section(config, key) for key in ("model", "training", RUN_FACTS))
        written = results.get("name") or facts.get("name") or _section(config, "experiment").get("name")
        architecture = str(results.get("architecture") or model.get("architecture") or "unknown")
        seed = finite(_first(results.get("seed"), config.get("seed"), training.get("seed")))
        data_seed = finite(_first(results.get("data_seed"), training.get("data_seed"), seed))
        values |= {
            "path": folder,
            "name": group_name(str(written or re.sub(r"_[0-9a-f]{6,}$", "", folder.name))),
            "status": status,
            "architecture": architecture,
            "architecture_name": str(results.get("architecture_name") or architecture),
            "seed": None if seed is None else int(seed),
            "data_seed": None if data_seed is None else int(data_seed),
            "learning_rate": finite(_first(results.get("learning_rate"), training.get("learning_rate"))),
            "hypothesis": str(
                results.get("hypothesis") or _section(config, "experiment").get("hypothesis") or ""
            ).strip(),
            "plugin_metrics": _section(results, "plugin_metrics"),
            "components": _section(results, "components"),
            "provenance": _section(results, "provenance"),
            "launch": results.get("launch") if isinstance(results.get("launch"), Mapping) else None,
            "schema_version": SCHEMA_VERSION,
            "config": config,
            "others": {key: value for key, value in results.items() if key not in (*RESULT_KEYS, DIGEST)},
        }
        return cls(**values)

    def to_results(self) -> dict[str, Any]:
        """What results.json holds of this record; keys without a value are left out."""
        values = {key: getattr(self, key) for key in RESULT_KEYS}
        return {
            "schema_version": self.schema_version,
            **{key: value for key, value in values.items() if value is not None and key != "schema_version"},
            **self.others,
        }

    def renamed(self, name: str) -> Self:
        """The same run under another name."""
        return replace(self, name=name)

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The finite measured numbers by their keys, those of plugins after the others."""
        found = [(key, finite(getattr(self, key))) for key in NUMBERS]
        found += [(key, finite(facts.get("value"))) for key, facts in self.plugin_metrics.items() if key not in NUMBERS]
        return {key: value for key, value in found if value is not None}

    @property
    def completed(self) -> bool:
        """Whether the run ended well *and* its validation loss is a number: the only runs that enter statistics."""
        return self.status == "completed" and "final_val_loss" in self.numbers

    @property
    def experiment(self) -> dict[str, Any]:
        """The recipe's `experiment` section, with what the set wrote about itself in `run`: its baseline and match."""
        return {**_section(self.config, "experiment"), **_section(self.config, RUN_FACTS)}

    @property
    def exit_reason(self) -> str | None:
        """Why the run ended as it did, in its own words."""
        reason = self.provenance.get("exit_reason")
        return None if reason is None else str(reason)

    @property
    def label(self) -> str:
        """How sentences name this run: its name and seed."""
        return self.name if self.seed is None else f"{self.name} (seed {self.seed})"

    @property
    def modified(self) -> float:
        """Time of the last write to its results (or its config, before there are any), in seconds since the epoch."""
        results = self.path / RESULTS_FILE
        return (results if results.exists() else self.path / CONFIG_FILE).stat().st_mtime

    @cached_property
    def benchmarks(self) -> dict[str, dict[str, Any]]:
        """{task: {metric: value}} of evaluation.json, read on first use; empty where nothing was evaluated. Scores of
        weights that the run had before it was extended are left out, and that is said."""
        found, outdated = self._scores, self.outdated_tasks
        if outdated:
            logger.warning(
                "%s: the scores of %s are of weights before step %s and left out; run `hf-arch eval` again",
                *(self.path, ", ".join(sorted(outdated)), self.steps),
            )
        return {task: values for task, values in found.items() if task not in outdated}

    @cached_property
    def outdated_tasks(self) -> frozenset[str]:
        """The tasks whose scores are of weights after another number of steps than the run has by now."""
        made = {task: _section(values, SCORED_WEIGHTS).get("steps") for task, values in self._scores.items()}
        return frozenset(
            task for task, steps in made.items() if None not in (steps, self.steps) and steps != self.steps
        )

    @property
    def item_tasks(self) -> list[str]:
        """The tasks whose items the folder holds, but for outdated ones."""
        return [task for task in item_tasks(self.path) if task not in {item_name(task) for task in self.outdated_tasks}]

    @cached_property
    def _scores(self) -> dict[str, Any]:
        file = self.path / EVALUATION_FILE
        scores = _section(read_json(file), "results") if file.is_file() else {}
        return {task: values for task, values in scores.items() if isinstance(values, Mapping)}

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, read on first use."""
        return read_metrics(self.path / METRICS_FILE)

    @cached_property
    def edited(self) -> list[str] | None:
        """What is not as the run wrote it (`hf_arch.runs.digest`); None where that is not known."""
        return edited(self.path, self.metrics) if self.completed else None


NUMBERS: dict[str, Number] = numbers_of(RunRecord)
"""{key: definition} of every measured number."""
_RESULTS = [entry for entry in fields(RunRecord) if entry.name not in ("path", "config", "others")]
RESULT_KEYS = tuple(entry.name for entry in _RESULTS)
OBJECTS = tuple(entry.name for entry in _RESULTS if str(entry.type).startswith("Mapping"))
"""Keys of results.json that hold an object."""


def definitions(runs: Iterable[RunRecord] = ()) -> dict[str, Number]:
    """{key: definition} of every measured number, those that plugins measured of `runs` last."""
    found = {key: read_number(key, facts) for run in runs for key, facts in run.plugin_metrics.items()}
    return {**NUMBERS, **{key: number for key, number in found.items() if key not in NUMBERS}}


def numbers_for(reader: Reader, runs: Iterable[RunRecord] = ()) -> list[Number]:
    """The numbers that `reader` shows, in the order of the record, those of plugins in `runs` last."""
    return [number for number in definitions(runs).values() if reader in number.readers]


def read_results(folder: Path) -> RunRecord | None:
    """The record of results.json alone; None before there is one."""
    return RunRecord.from_files(folder, read_json(file), {}) if (file := folder / RESULTS_FILE).is_file() else None


def write_results(folder: Path, values: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Writes results.json, atomically, and returns what it holds; `config` is what `write_config` returned. Raises
    ConfigError for a value of a wrong type."""
    RunRecord.from_files(folder, values, {})
    sealed = seal_results(folder, {"schema_version": SCHEMA_VERSION, **values}, config)
    write_json(folder / RESULTS_FILE, sealed)
    return sealed


def write_end(folder: Path, name: str | None, status: str, reason: str, **changes: Any) -> None:
    """Ends a run from outside: sets `status`, `changes` and, where the run did not itself say so, why it ended."""
    file = folder / RESULTS_FILE
    results = read_json(file) if file.is_file() else {}
    provenance = _section(results, "provenance")
    if results.get("status") != status:  # it was killed, or failed before its results file was begun
        provenance = {**provenance, "exit_reason": reason}
    named = {} if name is None else {"name": name}
    write_results(folder, {**named, **results, "status": status, **changes, "provenance": provenance})


def write_config(
    folder: Path, recipe: Recipe, facts: Mapping[str, Any], *, data_fingerprint: str | None = None
) -> dict[str, Any]:
    """Writes experiment_config.json, and returns what it holds: the sections of the recipe, and in `run` the `facts`,
    over what the set that planned this run has written there (its name and hash, its baseline, how it was matched)."""
    file = folder / CONFIG_FILE
    before = read_json(file) if file.is_file() else {}
    planned = _section(before, RUN_FACTS)
    own = {"schema_version": SCHEMA_VERSION, **planned, **facts, **facts_of_digest(folder, before)}
    own["hash"] = planned.get("hash") or recipe.stable_hash(*filter(None, [data_fingerprint]))
    values = recipe.to_dict()
    if plugins := values["model"].get("plugins"):  # the run's own copies move with its folder
        inside = {str(folder / copy): copy for copy in own.get("plugins") or {}}
        values["model"]["plugins"] = [inside.get(path, path) for path in plugins]
    write_json(file, written := {**values, RUN_FACTS: own})
    return written


def group_name(name: str) -> str:
    """The name without what a matrix appended for the learning rate or the seed: these repeat a run, and tune it."""
    return re.sub(r"-(learning_rate|seed)-\d[\d.]*(e[+-]?\d+)?", "", name)


def _section(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, Mapping) else {}


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
