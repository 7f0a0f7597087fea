"""The start-up report: what is about to be trained, what it costs, and what is switched on.

`model_report` is computed from the config alone (`hf-arch info`); `training_rows` adds what a run decides at its start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from transformers import PreTrainedConfig, TrainingArguments

import hf_arch
from hf_arch.training.precision import Precision

ADAM_BYTES_PER_PARAMETER = 16  # fp32 weight, gradient, and both moments


def model_report(config: PreTrainedConfig, seq_len: int) -> dict[str, Any]:
    """Name, components and cost of a config as plain values; FLOPs per token, bytes of state at `seq_len` tokens of
    context.
    """
    name, components = hf_arch.describe(config)
    cost = hf_arch.cost(config, seq_len)
    return {
        "name": name,
        "model_type": config.model_type,
        "architecture": config.model_type.removeprefix("hfa_"),
        "components": dict(components),
        "seq_len": seq_len,
        "params_total": cost.params_total,
        "params_trainable": cost.params_trainable,
        "params_active": cost.params_active,
        "params_embedding": cost.params_embedding,
        "flops_per_token_train": cost.flops_per_token_train,
        "flops_per_token_forward": cost.flops_per_token_forward,
        "prefill_flops": cost.prefill_flops,
        "decode_flops": cost.decode_flops(seq_len),
        "state_bytes": cost.state_bytes(seq_len),
        "training_bytes": cost.params_total * ADAM_BYTES_PER_PARAMETER,
    }


def render_model_report(report: dict[str, Any]) -> RenderableType:
    """The report as two tables for a terminal: components, and cost."""
    length = report["seq_len"]
    cost = [
        ("parameters", f"{report['params_total']:,}"),
        ("without embeddings", f"{report['params_total'] - report['params_embedding']:,}"),
        ("train FLOPs per token", f"{human(report['flops_per_token_train'])} (rows of {length})"),
        ("forward FLOPs per token", human(report["flops_per_token_forward"])),
        ("decode FLOPs per token", f"{human(report['decode_flops'])} (context {length})"),
        ("state or cache", f"{human_bytes(report['state_bytes'])} (context {length}, one sequence)"),
        (
            "memory to train",
            f"{human_bytes(report['training_bytes'])} for weights, gradients and AdamW, plus activations",
        ),
    ]
    if report["params_active"] != report["params_total"]:
        cost.insert(1, ("active per token", f"{report['params_active']:,}"))
    return Group(
        two_columns(report["name"], [(key, str(value)) for key, value in report["components"].items()]),
        two_columns("cost", cost),
    )


def training_rows(
    args: TrainingArguments,
    precision: Precision,
    *,
    sequence_length: int,
    global_batch: int,
    start_step: int,
    muon: bool = False,
) -> list[tuple[str, str]]:
    """What the run will do, one (what, how) a line."""
    tokens = global_batch * sequence_length
    optimiser = "muon with adamw" if muon else _value(args.optim)
    checkpointing = args.activation_checkpointing or args.gradient_checkpointing
    rows = [
        ("dtype", f"{precision.name}: {precision.reason}"),
        ("steps", f"{args.max_steps:,}" + (f", resumed at {start_step:,}" if start_step else "")),
        ("batch", f"{global_batch} x {sequence_length} = {tokens:,} tokens; {args.max_steps * tokens:,} in all"),
        ("optimiser", f"{optimiser}, learning rate {args.learning_rate:g}, weight decay {args.weight_decay:g}"),
        ("schedule", f"{_value(args.lr_scheduler_type)}, warm-up {args.warmup_steps:g}"),
        ("accumulation", _switch(args.gradient_accumulation_steps > 1, f"{args.gradient_accumulation_steps} steps")),
        ("gradient clipping", _switch(args.max_grad_norm > 0, f"norm {args.max_grad_norm:g}")),
        ("activation checkpointing", _switch(bool(checkpointing))),
        ("torch.compile", _switch(args.torch_compile)),
        ("seed", str(args.seed)),
    ]
    if args.label_smoothing_factor:
        rows.append(("label smoothing", f"{args.label_smoothing_factor:g}"))
    return rows


def two_columns(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    """A plain table of (name, value) lines under a title."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def human(number: float) -> str:
    """A count with a decimal prefix: 1234567 -> "1.23 M"."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 1000:
            return f"{number:.3g} {prefix}".rstrip()
        number /= 1000
    return f"{number:.3g} P"


def human_bytes(number: float) -> str:
    """Bytes with a binary prefix: 1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"


def _switch(on: bool, how: str = "on") -> str:
    return how if on else "off"


def _value(entry: Any) -> str:
    return str(getattr(entry, "value", entry))
