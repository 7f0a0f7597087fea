"""The model report: name, components and cost of a config, computed from the config alone (`hf-arch info`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table

import hf_arch
from hf_arch.core.formats import byte_size, quantity

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

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
        ("train FLOPs per token", f"{quantity(report['flops_per_token_train'])} (rows of {length})"),
        ("forward FLOPs per token", quantity(report["flops_per_token_forward"])),
        ("decode FLOPs per token", f"{quantity(report['decode_flops'])} (context {length})"),
        ("state or cache", f"{byte_size(report['state_bytes'])} (context {length}, one sequence)"),
        (
            "memory to train",
            f"{byte_size(report['training_bytes'])} for weights, gradients and AdamW, plus activations",
        ),
    ]
    if report["params_active"] != report["params_total"]:
        cost.insert(1, ("active per token", f"{report['params_active']:,}"))
    return Group(
        two_columns(report["name"], [(key, str(value)) for key, value in report["components"].items()]),
        two_columns("cost", cost),
    )


def two_columns(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    """A plain table of (name, value) lines under a title."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table
