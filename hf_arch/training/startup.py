"""What a run decides at its start, as lines of the start-up report."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments

from hf_arch.training.precision import Precision


def training_rows(
    args: TrainingArguments,
    precision: Precision,
    *,
    sequence_length: int,
    global_batch: int,
    start_step: int,
    optimizer: str | None = None,
) -> list[tuple[str, str]]:
    """What the run will do, one (what, how) a line."""
    tokens = global_batch * sequence_length
    optimiser = optimizer or _value(args.optim)
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


def _switch(on: bool, how: str = "on") -> str:
    return how if on else "off"


def _value(entry: Any) -> str:
    return str(getattr(entry, "value", entry))
