"""Speed and memory of architectures, side by side: training, prefill and decode by length of context.

Single timings are noisy and machines drift, so every round measures every model once, in turn, and a ratio is the
median of the ratios within the rounds. Weights are random: speed does not depend on them.

- train: a step of AdamW with forward and backward, under autocast where the dtype is not fp32.
- prefill: a prompt of `seq_len` tokens into an empty cache, logits of the last one only.
- decode: single tokens into a cache of `seq_len` tokens.
- peak memory: weights, gradients, moments and activations of a training step, counted tensor by tensor.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.evaluation.loading import parse_device, parse_dtype
from hf_arch.evaluation.roofline import add_shares, measure_roofline
from hf_arch.evaluation.tensor_memory import cache_bytes, peak_tensor_bytes, tensor_bytes
from hf_arch.runs.provenance import provenance

PHASES = ("train", "prefill", "decode")
CACHE_OUTPUTS = ("cache", "past_key_values", "cache_params")
"""What models of this and other libraries call the cache, in their output and among their arguments."""


@dataclass(frozen=True)
class Candidate:
    """A model to measure. baseline: the label of what it is compared to, None for what others are compared to."""

    name: str
    implementation: str
    build: Callable[[], PreTrainedModel]
    baseline: str | None = None

    @property
    def label(self) -> str:
        """Name, with the implementation where it is not ours."""
        return self.name if self.implementation == "hf_arch" else f"{self.name} ({self.implementation})"


@dataclass(frozen=True)
class BenchOptions:
    """seq_len: lengths of context in tokens. repeats: rounds after one that warms up. decode_tokens: steps timed.
    roofline: whether the machine's limits are measured, and each row's share of them (`roofline`)."""

    seq_len: tuple[int, ...] = (256,)
    batch_size: int = 1
    dtype: str = "fp32"
    device: str | None = None
    repeats: int = 5
    decode_tokens: int = 16
    roofline: bool = False

    def __post_init__(self) -> None:
        if not self.seq_len:
            raise ConfigError("--seq-len: no length given; e.g. --seq-len 256,1024")
        numbers = [("--seq-len", length) for length in self.seq_len]
        numbers += [("--batch-size", self.batch_size), ("--repeats", self.repeats)]
        numbers += [("--decode-tokens", self.decode_tokens)]
        for name, value in numbers:
            if value < 1:
                raise ConfigError(f"{name}: {value} is not allowed; allowed: at least 1; nearest: 1")
        if self.dtype == "auto":
            raise choice_error("--dtype", self.dtype, ["fp32", "bf16", "fp16"])
        if parse_dtype(self.dtype) is torch.float16 and parse_device(self.device).type == "cpu":
            raise ConfigError("--dtype: 'fp16' needs a GPU; allowed on a CPU: fp32, bf16; nearest: 'bf16'")

    @property
    def longest(self) -> int:
        """Tokens that a model has to have positions for."""
        return max(self.seq_len) + self.decode_tokens


class Subject:
    """A model under measurement, with its optimiser, and the same weights in the dtype of inference."""

    def __init__(self, candidate: Candidate, options: BenchOptions) -> None:
        self.candidate = candidate
        self.device = parse_device(options.device)
        self.dtype = parse_dtype(options.dtype) or torch.float32
        self.decode_tokens = options.decode_tokens
        self.model = candidate.build().to(self.device)
        # Fused, so that the optimiser's share is the same small one for everybody.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, fused=True)
        full = self.dtype is torch.float32
        self.reader = self.model if full else copy.deepcopy(self.model).to(self.dtype).eval()

    def train(self, tokens: torch.Tensor) -> float:
        """Seconds of one step over `tokens` [B, T]."""
        self.model.train()
        return self._seconds(lambda: self._step(tokens))

    def _step(self, tokens: torch.Tensor) -> None:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            loss = self.model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def read(self, tokens: torch.Tensor) -> tuple[float, float, int]:
        """Seconds of prefill and of one decoding step, and the bytes of the cache after prefill."""
        self.reader.eval()
        with torch.inference_mode():
            start = self._now()
            output = self._forward(tokens)
            prefill = self._now() - start
            name, cache = next((name, output[name]) for name in CACHE_OUTPUTS if name in list(output))
            size = cache_bytes(cache)
            step = tokens[:, -1:]
            start = self._now()
            for _ in range(self.decode_tokens):
                self._forward(step, **{name: cache})
            decode = (self._now() - start) / self.decode_tokens
        return prefill, decode, size

    def _forward(self, tokens: torch.Tensor, **cache: Any) -> Any:
        return self.reader(input_ids=tokens, use_cache=True, logits_to_keep=1, **cache)

    def peak_memory(self, tokens: torch.Tensor) -> int:
        """Bytes at the peak of a training step, whatever else is in memory."""
        self.model.train()
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        resident = tensor_bytes([*self.model.parameters(), *self.model.buffers(), *moments])
        return resident + peak_tensor_bytes(lambda: self._step(tokens), self.device)

    def _seconds(self, action: Callable[[], None]) -> float:
        start = self._now()
        action()
        return self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def run_bench(
    candidates: Sequence[Candidate], options: BenchOptions, report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measures all candidates in turn and returns one document: `settings`, `provenance`, and a row in `results` for
    each model and length, with tokens per second, bytes, and the ratios to its baseline (`Candidate.baseline`).
    """
    subjects = [Subject(candidate, options) for candidate in candidates]
    results: list[dict[str, Any]] = []
    for length in options.seq_len:
        report(f"{length} tokens: {', '.join(subject.candidate.label for subject in subjects)}")
        results += _measure(subjects, length, options)
    document = {
        "settings": asdict(options),
        "provenance": provenance(parse_device(options.device)),
        "results": results,
    }
    if options.roofline:
        report("the machine's product rate and bandwidth")
        limits = measure_roofline(parse_device(options.device), ("fp32", "bf16", options.dtype))
        ours = [subject for subject in subjects if subject.candidate.implementation == "hf_arch"]
        configs = {subject.candidate.name: subject.model.config for subject in ours}
        add_shares(results, configs, limits, options.dtype)
        document["roofline"] = limits.to_dict()
    return document


def _measure(subjects: Sequence[Subject], length: int, options: BenchOptions) -> list[dict[str, Any]]:
    """A row for each subject at one length of context."""
    rounds: list[dict[str, list[float]]] = [{phase: [] for phase in PHASES} for _ in subjects]
    rows: list[dict[str, Any]] = []
    prompts = [random_tokens(subject, length, options.batch_size) for subject in subjects]
    for subject, tokens in zip(subjects, prompts, strict=True):  # warms up, and counts bytes
        subject.train(tokens)
        _, _, size = subject.read(tokens)
        rows.append(
            {
                "name": subject.candidate.name,
                "implementation": subject.candidate.implementation,
                "params_total": sum(parameter.numel() for parameter in subject.model.parameters()),
                "seq_len": length,
                "batch_size": options.batch_size,
                "peak_memory_bytes": subject.peak_memory(tokens),
                "cache_bytes": size,
            }
        )
    work = {"train": options.batch_size * length, "prefill": options.batch_size * length, "decode": options.batch_size}
    for _ in range(options.repeats):
        for subject, tokens, seconds in zip(subjects, prompts, rounds, strict=True):
            prefill, decode, _ = subject.read(tokens)
            times = {"train": subject.train(tokens), "prefill": prefill, "decode": decode}
            for phase in PHASES:
                seconds[phase].append(times[phase])
    for row, seconds in zip(rows, rounds, strict=True):
        for phase in PHASES:
            row[f"{phase}_tokens_per_second"] = work[phase] / statistics.median(seconds[phase])
        row["seconds"] = seconds
    _add_ratios(rows, [subject.candidate for subject in subjects])
    return rows


def _add_ratios(rows: list[dict[str, Any]], candidates: Sequence[Candidate]) -> None:
    """`ratio`: speed over the baseline's, and bytes over the baseline's; speeds by the median over rounds."""
    labels = [candidate.label for candidate in candidates]
    for row, candidate in zip(rows, candidates, strict=True):
        if candidate.baseline is None:
            continue
        base = rows[labels.index(candidate.baseline)]
        ratio: dict[str, Any] = {"to": candidate.baseline}
        for phase in PHASES:
            pairs = zip(base["seconds"][phase], row["seconds"][phase], strict=True)
            ratio[phase] = statistics.median(theirs / ours for theirs, ours in pairs)
        for key in ("peak_memory_bytes", "cache_bytes"):
            ratio[key.removesuffix("_bytes")] = row[key] / base[key] if base[key] else None
        row["ratio"] = ratio


def random_tokens(subject: Subject, length: int, batch_size: int) -> torch.Tensor:
    """[B, T] random tokens without the padding token, which embeddings may treat apart."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = subject.model.config.vocab_size
    return torch.randint(min(3, vocabulary - 1), vocabulary, (batch_size, length), generator=generator).to(
        subject.device
    )
