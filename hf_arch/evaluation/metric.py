"""A number of one's own, measured at every evaluation and on the final weights, from a plugin file.

    @METRICS.register("entropy")
    class Entropy(Metric):
        words, unit, show = "entropy of predictions", "nats", ".3f"

        def measure(self, model, batch, logits):
            p = logits.float().log_softmax(-1)
            return torch.stack([-(p.exp() * p).sum(), torch.tensor(logits[..., 0].numel())])

`evaluation.metrics: [entropy]` asks for it. `measure` returns sums, which are added over batches and processes, and
`value` makes the number of them, so that it depends on neither. It stands in `results.json` under `plugin_metrics`,
with what it is, so that tables, claims and the card need not load its plugin; `experiment.metric: entropy` makes it
the number that the runs are ranked and judged by.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_arch.core.errors import ConfigError
from hf_arch.core.options import Options
from hf_arch.core.plugins import plugin_error
from hf_arch.evaluation.perplexity import following_labels
from hf_arch.recipe.metrics import metric_entries
from hf_arch.runs.numbers import plugin_number
from hf_arch.runs.record import RESULT_KEYS


class Metric:
    """Base of every one. `self.options` are its parsed options.

    words: its name in sentences (its registered name where empty). unit: of the value. show: a format such as `.3f` or
    `.1%`. column: the head of its column in tables. help: what stands behind it. decimals: the least decimals of
    mean ± half-width. higher_is_better: the direction in which runs are ranked by it.
    """

    Options: ClassVar[type[Options]] = Options
    words: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    show: ClassVar[str] = ".4f"
    column: ClassVar[str] = ""
    help: ClassVar[str] = ""
    decimals: ClassVar[int] = 3
    higher_is_better: ClassVar[bool] = False

    def __init__(self, options: Any) -> None:
        self.options = options

    def measure(self, model: Any, batch: Mapping[str, Tensor], logits: Tensor) -> Tensor:
        """Sums of one batch, a tensor [k] of any length k that is the same for every batch; by default `value` divides
        the first by the second.

        Args:
            model: the causal LM, in evaluation mode, without gradients; random numbers are the same at each evaluation.
            batch: `input_ids` and `labels` int64 [B, T]; `labels[:, t]` is what position t predicts, -100 where nothing
            counts. logits: [B, T, V] of that batch.
        """
        raise NotImplementedError(f"{type(self).__name__}.measure")

    def value(self, sums: Tensor) -> float:
        """The number, of the sums over everything (float64 [k])."""
        if sums.numel() != 2:
            raise ValueError(f"measure gave {sums.numel()} sums, where 2 are divided; give 2, or write `value`")
        return (sums[0] / sums[1]).item()


def parse_metrics(entries: Sequence[Any]) -> dict[str, Metric]:
    """{name: metric} of `evaluation.metrics`. Raises `ConfigError` as `metric_entries` does, and for a metric that is
    called as another number of results is, or whose format writes no number."""
    found = {name: kind(options) for name, (kind, options) in metric_entries(entries).items()}
    for name, metric in found.items():
        if name in RESULT_KEYS or name in ("loss", "perplexity", "seconds"):
            raise ConfigError(f"metric {name!r}: a number of results.json or metrics.jsonl is called so; rename it")
        try:
            _facts(name, metric)
        except ConfigError as error:
            raise ConfigError(f"metric {name!r}: {error}") from error
    return found


class Measurement:
    """Adds up what metrics measure.

    Raises `ConfigError` of one line, which names the plugin's line, where a metric raises an error, or returns what
    cannot be added up.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self.metrics = metrics
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, model: Any, batches: Iterable[Mapping[str, Tensor]], device: torch.device) -> None:
        """Measures batches of `input_ids` and `labels` [B, T] as datasets have them. Leaves the model's mode and the
        random numbers of the process as they were."""
        if not self.metrics:
            return
        was_training = model.training
        model.eval()
        devices = [device] if device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                torch.manual_seed(0)
                for batch in batches:
                    inputs = {key: value.to(device) for key, value in batch.items()}
                    labels = following_labels(inputs.pop("labels"), inputs.pop("shift_labels", None))
                    logits = model(**inputs, use_cache=False).logits
                    for name in self.metrics:
                        self._add(name, model, {**inputs, "labels": labels}, logits)
        finally:
            model.train(was_training)

    def _add(self, name: str, model: Any, batch: Mapping[str, Tensor], logits: Tensor) -> None:
        try:
            found = self.metrics[name].measure(model, batch, logits)
        except Exception as error:  # whatever the user's code raises
            raise _wrong(name, error) from error
        if not isinstance(found, Tensor) or found.ndim != 1:
            what = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(f"metric {name!r}: measure returned {what}; expected a tensor [k] of sums")
        before = self.sums.get(name)
        if before is not None and before.shape != found.shape:
            raise ConfigError(f"metric {name!r}: measure returned {len(found)} sums after {len(before)}")
        found = found.detach().double().cpu()
        self.sums[name] = found if before is None else before + found

    def values(self) -> dict[str, float]:
        """{name: number}; NaN where there is none."""
        found = {}
        for name, metric in self.metrics.items():
            try:
                value = metric.value(self.sums[name])
                found[name] = float(value)
            except Exception as error:
                raise _wrong(name, error) from error
        return found


def try_metrics(metrics: Mapping[str, Metric], model: Any, row: Mapping[str, Tensor], device: torch.device) -> None:
    """Measures one row before anything is trained. Raises `ConfigError` for whatever is wrong with a metric, also where
    its value is no finite number."""
    measurement = Measurement(metrics)
    measurement.add(model, [{key: value[None] for key, value in row.items()}], device)
    for name, value in measurement.values().items():
        if not math.isfinite(value):
            raise ConfigError(f"metric {name!r}: is {value} on a row of the untrained model; expected a finite number")


def metric_results(metrics: Mapping[str, Metric], values: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """What `results.json` holds of them: each value (None where it is not finite, which is said) with what it is."""
    for name, value in values.items():
        if not math.isfinite(value):
            logging.getLogger("hf_arch").warning("metric %s: is %s; results.json has no value for it", name, value)
    return {
        name: {
            "value": value if math.isfinite(value := values[name]) else None,
            **_facts(name, metric),
        }
        for name, metric in metrics.items()
    }


def _facts(name: str, metric: Metric) -> dict[str, Any]:
    what = (metric.words or name, metric.unit, metric.show, metric.column, metric.help, metric.decimals)
    return plugin_number(*what, higher_is_better=metric.higher_is_better)


def _wrong(name: str, error: Exception) -> ConfigError:
    return ConfigError(f"metric {name!r}: {plugin_error(error)}")
