"""Balancing of experts by bias instead of by loss (DeepSeek-V3, arXiv 2412.19437): once an optimiser step, each mixture
of experts with `score_bias` moves its scores towards the experts that had too little to do."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_arch.layers.ffns.moe import rebalance_experts


class ExpertBalance(TrainerCallback):
    """For any Trainer; does nothing for a model without such experts."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        rebalance_experts(kwargs["model"])
