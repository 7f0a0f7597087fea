"""What a launcher asked for, against what really runs.

`accelerate launch` and `torchrun` speak to a script through environment variables alone, and on a machine without a GPU
accelerate does less than its recipe says without a word: one process for `MULTI_CPU`, plain data parallelism for FSDP.
`read_request` reads what was asked, `check_launch` and `check_arguments` stop before anything is written where it would
not be done, and `running` says what is done, from accelerate's own state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import TrainingArguments

from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.environment import known, read
from hf_arch.optimizers.choose import check_launch_of, choose_optimizer
from hf_arch.training.precision import Precision, choose_precision
from hf_arch.training.trainer import ArchTrainer

MODES = ("auto", "always", "never")
CPU_FSDP = "HF_ARCH_CPU_FSDP"
_COMMAND = "torchrun --nproc-per-node N scripts/train.py RECIPE"
# Launchers that start copies without telling torch of each other; each copy would train the whole run.
_FOREIGN_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


@dataclass(frozen=True)
class LaunchRequest:
    """What the environment asks of this run.

    precision: bf16, fp16 or fp8, or None where the launcher leaves it open.
    lost_processes: accelerate was asked for several processes and started one.
    """

    processes: int = 1
    fsdp: bool = False
    deepspeed: bool = False
    cpu: bool = False
    cpu_fsdp: bool = False
    precision: str | None = None
    lost_processes: bool = False


@dataclass(frozen=True)
class Running:
    """What runs: `strategy` is single, ddp, fsdp1, fsdp2 or deepspeed; `sharded` says what each process holds only a
    part of; `backend` is torch.distributed's, None for one process without it."""

    processes: int
    strategy: str
    sharded: str
    backend: str | None
    device: str
    precision: str

    def describe(self) -> str:
        """One line for the start-up report."""
        count = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        device = self.device
        if device == "cuda" and self.strategy == "single" and torch.cuda.device_count() > 1:
            device += f" (one of {torch.cuda.device_count()}; `--distributed always` takes all)"
        parts = [count, device, self.precision]
        if self.strategy != "single":
            parts.insert(1, f"{self.strategy.upper()} over {self.backend}, sharded: {self.sharded}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the run's files."""
        return dataclasses.asdict(self)


def read_request(environment: Mapping[str, str] | None = None) -> LaunchRequest:
    """What the launcher asks for. Raises `ConfigError` for a launcher that keeps its processes apart."""
    environment = known() if environment is None else environment
    under_torch = "WORLD_SIZE" in environment
    for name in _FOREIGN_SIZES:
        if not under_torch and int(environment.get(name) or 1) > 1:
            raise ConfigError(
                f"{name}: {environment[name]} copies of this command were started that do not know of each other, and "
                f"each would train the whole run; start one of them on each machine by `{_COMMAND}`"
            )
    # accelerate always exports its precision. Where it starts one process it sets an address only if more were meant.
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    return LaunchRequest(
        processes=int(environment.get("WORLD_SIZE", "1")),
        fsdp=_flag(environment, "ACCELERATE_USE_FSDP"),
        deepspeed=_flag(environment, "ACCELERATE_USE_DEEPSPEED"),
        cpu=_flag(environment, "ACCELERATE_USE_CPU"),
        cpu_fsdp=_flag(environment, CPU_FSDP),
        precision=None if precision == "no" else precision,
        lost_processes=by_accelerate and not under_torch and "MASTER_ADDR" in environment,
    )


def check_launch(request: LaunchRequest, mode: str = "auto") -> None:
    """Raises `ConfigError` where what was started is not what `mode` (auto, always, never) or the launcher asks for."""
    if mode not in MODES:
        raise choice_error("--distributed", mode, MODES)
    if request.lost_processes:
        raise ConfigError(
            "accelerate launch: several processes were requested (MASTER_ADDR is set) and one was started, as always "
            "on CPUs; write `distributed_type: MULTI_GPU`, its name for several processes of any device, as in "
            f"recipes/accelerate/cpu_ddp.yaml, or use `{_COMMAND}`"
        )
    if request.deepspeed and (request.cpu or not torch.cuda.is_available()):
        raise ConfigError("accelerate launch: DeepSpeed is not supported on a CPU; use recipes/accelerate/cpu_ddp.yaml")
    if mode == "never" and request.processes > 1:
        raise ConfigError(
            f"--distributed: 'never' but {request.processes} processes were launched; start `hf-arch train` by itself"
        )


def requested_precision(
    training: Mapping[str, Any], request: LaunchRequest, before: Precision | None = None
) -> Precision:
    """The precision of the recipe, which may leave it to the launcher, or to what was decided for the run `before`.
    Raises `ConfigError` where recipe and launcher disagree."""
    wanted = training.get("precision", "auto")
    device = torch.device("cpu") if request.cpu or training.get("use_cpu") else None
    if request.precision is None or request.precision == wanted:
        if wanted == "auto" and before is not None:
            return before
        return choose_precision(wanted, device)
    if request.precision not in ("bf16", "fp16"):
        raise ConfigError(f"mixed_precision: the launcher says {request.precision!r}; allowed: no, bf16, fp16")
    if wanted != "auto":
        raise ConfigError(
            f"training.precision: {wanted!r} but the launcher says mixed_precision {request.precision!r}; "
            "leave one of them open ('auto', 'no')"
        )
    return dataclasses.replace(choose_precision(request.precision, device), reason="asked for by the launcher")


def check_arguments(args: TrainingArguments, request: LaunchRequest, training: Mapping[str, Any]) -> None:
    """Raises `ConfigError` where transformers, on this machine, will not do what was asked for."""
    builder = choose_optimizer(training)
    check_launch_of(builder, sharded=request.fsdp or request.deepspeed, shared_states=False)
    if training.get("zero_redundancy"):
        if request.fsdp or request.deepspeed or request.processes == 1:
            how = "FSDP" if request.fsdp else "DeepSpeed" if request.deepspeed else "one process, with none to share"
            raise ConfigError(
                "training.zero_redundancy: shares optimizer states out over processes with whole weights (DDP); "
                f"this is {how}"
            )
        check_launch_of(builder, sharded=False, shared_states=True)
    if args.world_size != request.processes:
        raise ConfigError(
            f"accelerate launch: {request.processes} processes were launched but {args.world_size} would take part on "
            f"{args.device}; use `{_COMMAND}`"
        )
    if request.fsdp and args.device.type == "cpu" and not request.cpu_fsdp:
        raise ConfigError(
            "accelerate launch: FSDP has no effect on CPUs, where accelerate keeps the whole model in every process; "
            f"use recipes/accelerate/cpu_ddp.yaml, or set {CPU_FSDP}=1 to try FSDP2 on CPUs"
        )


def check_metrics(metrics: Collection[str], request: LaunchRequest) -> None:
    """Raises `ConfigError` for metrics of plugins where no process has the whole model, which they are given."""
    if metrics and (request.fsdp or request.deepspeed):
        how = "FSDP" if request.fsdp else "DeepSpeed"
        raise ConfigError(
            f"evaluation.metrics: {next(iter(metrics))!r} needs the whole model; not supported with {how}"
        )


def running(trainer: ArchTrainer, precision: Precision) -> Running:
    """What accelerate has set up for `trainer`."""
    state = trainer.accelerator.state
    strategy, sharded = "single", "nothing"
    if trainer.is_deepspeed_enabled:
        stage = state.deepspeed_plugin.zero_stage
        strategy, sharded = "deepspeed", f"ZeRO stage {stage}"
    elif state.distributed_type.value == "FSDP":
        plugin = state.fsdp_plugin
        strategy, sharded = f"fsdp{plugin.fsdp_version}", "weights, gradients, optimizer states"
        if isinstance(plugin.cpu_offload, CPUOffloadPolicy) or getattr(plugin.cpu_offload, "offload_params", False):
            sharded += ", kept in CPU memory"
    elif state.num_processes > 1:
        strategy, sharded = "ddp", "optimizer states" if trainer.zero_redundancy else "nothing"
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return Running(
        processes=state.num_processes,
        strategy=strategy,
        sharded=sharded,
        backend=torch.distributed.get_backend() if ready else None,
        device=trainer.args.device.type,
        precision=precision.name,
    )


def check_running(now: Running, request: LaunchRequest) -> None:
    """The last line: what accelerate set up against what was asked, whatever its version does differently."""
    wanted = "deepspeed" if request.deepspeed else "fsdp" if request.fsdp else ""
    if now.processes != request.processes or not now.strategy.startswith(wanted):
        raise ConfigError(
            f"accelerate launch: {request.processes} processes{' with ' + wanted if wanted else ''} were requested, "
            "but this is running: " + now.describe()
        )


def is_main_process() -> bool:
    """Whether this is the first of the processes that a launcher started, or the only one."""
    return (read("RANK") or "0") == "0"


def leave() -> None:
    """Ends this process's part in the group, without which torch complains at exit."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _flag(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("1", "true", "yes", "on")
