"""How long training steps take on this device, for dry runs: measured where that is quick, else by the FLOPs of the
cost model at the rate that this device was seen to reach.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

import hf_arch
from hf_arch.evaluation.bench import BenchOptions, Candidate, Subject, random_tokens

MEASURED, MODELLED = "measured", "cost model"
REPEATS = 3
PRODUCT_SIZE = 512
ASSUMED_SHARE = 0.3
"""Of the rate of a square product, what a training step reaches; taken only until a first step has been measured."""
TRAINING_BYTES = 32
"""For each parameter: weight, gradient, moments, and as much again for activations of a few rows."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, and whether they were `measured` or come from the `cost model`."""

    seconds: float
    source: str


@dataclass
class StepTimer:
    """Times steps as long as `budget` seconds last; every measured step makes the estimate of the others better.

    device: where Trainer would train. threads: of the process that trains a run.
    """

    device: torch.device
    dtype: str = "fp32"
    threads: int | None = None
    budget: float = 15.0
    rates: list[float] = field(default_factory=list)
    _known: dict[Any, StepTime] = field(default_factory=dict)
    _product_rate: float | None = None

    def step(self, config: PreTrainedConfig, batch: int, seq_len: int) -> StepTime:
        """The time of a step of `batch` rows of `seq_len` tokens, with its update."""
        key = (config.to_json_string(), batch, seq_len)
        if key not in self._known:
            self._known[key] = self._find(config, batch, seq_len)
        return self._known[key]

    @property
    def rate(self) -> float:
        """FLOP/s of training: the median of the measured steps, else the assumed share of a product's rate."""
        if self.rates:
            return statistics.median(self.rates)
        if self._product_rate is None:
            self._product_rate = self._timed(_product_rate, self.device)
        return ASSUMED_SHARE * self._product_rate

    def _find(self, config: PreTrainedConfig, batch: int, seq_len: int) -> StepTime:
        cost = hf_arch.cost(config, seq_len)
        flops = cost.flops_per_token_train * batch * seq_len
        expected = flops / self.rate
        fits = cost.params_total * TRAINING_BYTES < _free_bytes(self.device)
        if not fits or expected * (REPEATS + 1) > self.budget:
            return StepTime(expected, MODELLED)
        started = time.perf_counter()
        seconds = self._timed(self._measure, config, batch, seq_len)
        self.budget -= time.perf_counter() - started
        self.rates.append(flops / seconds)
        return StepTime(seconds, MEASURED)

    def _measure(self, config: PreTrainedConfig, batch: int, seq_len: int) -> float:
        candidate = Candidate("", "hf_arch", lambda: AutoModelForCausalLM.from_config(config))
        with torch.random.fork_rng():
            subject = Subject(candidate, BenchOptions((seq_len,), batch, self.dtype, str(self.device)))
            tokens = random_tokens(subject, seq_len, batch)
            subject.train(tokens)
            return statistics.median(subject.train(tokens) for _ in range(REPEATS))

    def _timed(self, action: Any, *arguments: Any) -> float:
        """`action` with the threads that a run has."""
        before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            return float(action(*arguments))
        finally:
            torch.set_num_threads(before)


def _product_rate(device: torch.device) -> float:
    """FLOP/s of a square fp32 product."""
    left = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, device=device)

    def seconds() -> float:
        started = time.perf_counter()
        (left @ left).sum().item()  # the sum waits for a GPU
        return time.perf_counter() - started

    seconds()
    return 2 * PRODUCT_SIZE**3 / min(seconds() for _ in range(5))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
