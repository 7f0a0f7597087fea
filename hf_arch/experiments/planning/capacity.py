"""Whether a run fits on given GPUs, and how long it takes: memory of one device by part, for each way to share it out.

The bytes of one step come from the step itself, carried out on shapes (`evaluation/step_memory.py`): what plain torch
allocates. Kernels of flash-linear-attention keep less than that for most mixers. What each strategy divides, over n
devices:

    ddp      nothing; the buckets of the gradients' exchange come on top
    zero1    the optimizer's states by n, next to DDP's buckets
    fsdp2    weights, gradients and optimizer states by n; two gathered blocks in the precision of the products on top
    tp       weights, gradients, optimizer states, and what mixers, FFNs and logits keep, by the t devices of a group
             inside one machine (t divides the heads); the groups among each other are DDP

A device keeps `HEADROOM` for its context, workspaces and the allocator's gaps. Time is FLOPs over peak times the MFU,
which is an assumption that the caller states: communication is in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.evaluation.step_memory import BACKWARD, GRADIENTS, LOGITS, OPTIMIZER, WEIGHTS, step_memory
from hf_arch.experiments.planning.devices import Gpu
from hf_arch.experiments.planning.plan import PlannedRun

STRATEGIES = ("ddp", "zero1", "fsdp2", "tp")
HEADROOM = 0.08
COMMUNICATION = "communication buffers"
STATE = (WEIGHTS, GRADIENTS, OPTIMIZER)


@dataclass(frozen=True)
class Cluster:
    """`count` equal GPUs on `nodes` machines."""

    gpu: Gpu
    count: int
    nodes: int = 1

    def __post_init__(self) -> None:
        for name, value in (("--count", self.count), ("--nodes", self.nodes)):
            if value < 1:
                raise ConfigError(f"{name}: expected at least 1, got {value}")
        if self.count % self.nodes:
            near = max(1, self.count // self.nodes) * self.nodes
            raise ConfigError(f"--count: {self.count} GPUs do not divide over --nodes {self.nodes}; nearest: {near}")

    @property
    def per_node(self) -> int:
        """GPUs of one machine."""
        return self.count // self.nodes


@dataclass(frozen=True)
class Setting:
    """What of a run its memory depends on; `batch` rows at a time on each device (of a group, with tp)."""

    strategy: str
    batch: int
    accumulation: int
    checkpointing: bool


@dataclass(frozen=True)
class Placement:
    """A run under one setting: bytes of one device by part, whether they fit, and `group`, the devices that share a
    row (1 without tp)."""

    setting: Setting
    parts: Mapping[str, int]
    total: int
    fits: bool
    group: int = 1


@dataclass(frozen=True)
class Capacity:
    """The plan of one run: a placement for each strategy, the nearest that fits where one does not, time and cost."""

    name: str
    precision: str
    seq_len: int
    params: int
    tokens: int | None
    tokens_per_step: int
    tokens_per_second: float
    mfu: float
    seconds: float | None
    gpu_hours: float | None
    cost: float | None
    placements: tuple[Placement, ...]
    nearest: Placement | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Planned:
    """One run of a recipe on a cluster. Raises `ConfigError` for a precision that the GPU does not have."""

    def __init__(self, run: PlannedRun, cluster: Cluster) -> None:
        self.run, self.cluster = run, cluster
        training = run.recipe.training
        self.precision = cluster.gpu.precision(training.get("precision", "auto"))
        self.length = run.recipe.sequence_length
        self.asked = Setting(
            "ddp",
            training.get("per_device_train_batch_size", 8),
            training.get("gradient_accumulation_steps", 1),
            bool(training.get("gradient_checkpointing") or training.get("activation_checkpointing")),
        )
        self._memory: Callable[[int, bool], dict[str, int]] = lru_cache(
            lambda batch, checkpointing: step_memory(
                run.config, batch, self.length, self._autocast, checkpointing, "cuda"
            )
        )

    @property
    def _autocast(self) -> str:
        return "fp32" if self.precision == "fp32" else "bf16"  # fp16 takes the same bytes

    def place(self, setting: Setting) -> Placement:
        """The bytes of one device."""
        n, memory = self.cluster.count, self._memory(setting.batch, setting.checkpointing)
        whole = {part: memory.get(part, 0) for part in STATE}
        trainable = 4 * hf_arch.cost(self.run.config, self.length).params_trainable
        group = self._group() if setting.strategy == "tp" else 1
        by = {"ddp": (1, 1, 1), "zero1": (1, 1, n), "fsdp2": (n, n, n), "tp": (group, group, group)}[setting.strategy]
        parts = {part: math.ceil(whole[part] / share) for part, share in zip(STATE, by, strict=True)}
        inside = {part: size for part, size in memory.items() if part not in STATE}
        if group > 1:
            inside = {
                part: math.ceil(size / group) if part.startswith("mixer") or part in ("ffn", LOGITS, BACKWARD) else size
                for part, size in inside.items()
            }
        # At the end of the backward pass all gradients are there and no activation is.
        all_gradients = math.ceil(trainable / by[1])
        if setting.accumulation > 1:  # those of the batches before are there throughout
            parts[GRADIENTS] = all_gradients
        elif all_gradients > parts[GRADIENTS] + sum(inside.values()):
            parts[GRADIENTS], inside = all_gradients, {}
        extra = 0
        if n > group and setting.strategy != "fsdp2":
            extra = math.ceil(trainable / by[1])
        if n > 1 and setting.strategy == "fsdp2":
            extra = 2 * self._largest_block() * (4 if self.precision == "fp32" else 2)
        parts |= inside | ({COMMUNICATION: extra} if extra else {})
        total = sum(parts.values())
        setting = replace(setting, accumulation=setting.accumulation * group)  # the same global batch
        return Placement(setting, parts, total, total <= (1 - HEADROOM) * self.cluster.gpu.memory, group)

    def _group(self) -> int:
        """Devices of a tensor-parallel group: the most of one machine that divide the heads."""
        heads = math.gcd(self.run.config.num_attention_heads, self.run.config.num_key_value_heads or 0)
        return max(t for t in range(1, self.cluster.per_node + 1) if self.cluster.per_node % t == 0 and heads % t == 0)

    def _largest_block(self) -> int:
        """Weights of the largest unit that FSDP gathers: a block, or the embeddings."""
        cost = hf_arch.cost(self.run.config, self.length)
        block = math.ceil((cost.params_total - cost.params_embedding) / self.run.config.num_hidden_layers)
        return max(block, cost.params_embedding)

    def nearest(self) -> Placement | None:
        """The setting nearest to the one asked for that fits; None where not even one row does."""
        return next((placed for setting in self._nearer() if (placed := self.place(setting)).fits), None)

    def _nearer(self) -> Iterator[Setting]:
        """Other strategies, then checkpointing, then fewer rows at a time and more times."""
        batch, accumulation = self.asked.batch, self.asked.accumulation
        while True:
            for checkpointing in dict.fromkeys((self.asked.checkpointing, True)):
                for strategy in STRATEGIES:
                    yield Setting(strategy, batch, accumulation, checkpointing)
            if batch == 1:
                return
            smaller = next(size for size in range(batch - 1, 0, -1) if batch % size == 0)
            batch, accumulation = smaller, accumulation * (batch // smaller)

    def capacity(self, mfu: float, price: float | None) -> Capacity:
        """The whole plan."""
        if not 0 < mfu <= 1:
            raise ConfigError(f"--mfu: expected a share above 0, at most 1, got {mfu}")
        if price is not None and price < 0:
            raise ConfigError(f"--price: expected at least 0, got {price}")
        placements = tuple(self.place(replace(self.asked, strategy=strategy)) for strategy in STRATEGIES)
        cost, cluster = hf_arch.cost(self.run.config, self.length), self.cluster
        per_step = self.asked.batch * self.asked.accumulation * cluster.count * self.length
        speed = mfu * cluster.count * cluster.gpu.peak(self.precision) / cost.flops_per_token_train
        steps = self.run.recipe.training.get("max_steps")
        tokens = per_step * steps if steps and steps > 0 else None
        seconds = None if tokens is None else tokens / speed
        hours = None if seconds is None else seconds * cluster.count / 3600
        return Capacity(
            name=self.run.name,
            precision=self.precision,
            seq_len=self.length,
            params=cost.params_total,
            tokens=tokens,
            tokens_per_step=per_step,
            tokens_per_second=speed,
            mfu=mfu,
            seconds=seconds,
            gpu_hours=hours,
            cost=None if hours is None or price is None else hours * price,
            placements=placements,
            nearest=None if all(placed.fits for placed in placements) else self.nearest(),
        )
