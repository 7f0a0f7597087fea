"""`ArchTrainer`: transformers' Trainer, with the data order, the decay groups and the evaluation that comparisons need.

- Order: sample p of a run is `order.rows(p)`, a function of (seed, step) alone; a resumed run seeks there in O(1). For
  this one Trainer "epoch" is the whole run.
- Decay: matrices only. Norms, biases, and what a mixer lists in `no_weight_decay` (decays, step sizes,
  gates) keep none.
- Evaluation: nats summed over tokens, divided once, over the same first sequences every time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset
from transformers import Trainer, TrainerControl

from hf_arch.data import SeededOrder, SeededSampler, TokenDataset
from hf_arch.data.dataset import MixedDataset
from hf_arch.evaluation.perplexity import TextLoss, sum_nats
from hf_arch.training.cpu_fsdp import fsdp_on_cpus
from hf_arch.training.expert_balance import ExpertBalance
from hf_arch.training.zero import SharedOptimizer


class _RunSampler(SeededSampler):
    """Counts as the whole run, wherever it starts: Trainer derives the number of steps from the length."""

    def __len__(self) -> int:
        return self.num_samples


class ArchTrainer(Trainer):
    """Trainer for one run over packed rows.

    Args:
        order: which row each sample of the run is.
        train_dataset, eval_dataset: rows of `input_ids` and `labels` [T] (int64).
        eval_sequences: validation rows scored during training; None scores all.
        start_step: optimiser step of the checkpoint that is resumed from.
        zero_redundancy: share the optimizer states out over the processes.
    """

    eval_dataset: TokenDataset | MixedDataset
    control: TrainerControl

    def __init__(
        self,
        *,
        order: SeededOrder,
        eval_sequences: int | None = None,
        start_step: int = 0,
        zero_redundancy: bool = False,
        **kwargs: Any,
    ) -> None:
        self.zero_redundancy = zero_redundancy
        super().__init__(**kwargs)
        self.add_callback(ExpertBalance())
        self.order = order
        self.eval_sequences = eval_sequences
        self.start_step = start_step
        # Named now: wrapping (FSDP) hides the modules that exempt their parameters.
        self._decay_names = decay_parameter_names(self.model)

    def create_accelerator_and_postprocess(self) -> None:
        """As Trainer's, which on CPUs would drop FSDP; whether that is asked for has been checked by then."""
        with fsdp_on_cpus():
            super().create_accelerator_and_postprocess()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As Trainer's; with `zero_redundancy` each process holds the states of its share of the parameters alone."""
        optimizer = super().create_optimizer(model)
        if self.zero_redundancy and not isinstance(optimizer, SharedOptimizer):
            self.optimizer = optimizer = SharedOptimizer(optimizer)
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        wrapped = getattr(self.optimizer, "optimizer", None)  # by accelerate
        if isinstance(wrapped, SharedOptimizer):
            wrapped.gather()
        super()._save_optimizer_and_scheduler(output_dir)

    @property
    def global_batch_size(self) -> int:
        """Sequences in one optimiser step, over all processes and accumulation steps."""
        return self.get_total_train_batch_size(self.args)

    def _get_train_sampler(self, train_dataset: Any = None) -> SeededSampler:
        samples = self.args.max_steps * self.global_batch_size
        return _RunSampler(self.order, samples, start=self.start_step * self.global_batch_size)

    def get_train_dataloader(self) -> DataLoader:
        """As Trainer's, with a generator of its own: to begin an iteration draws a number, and the global generator has
        to stand where the checkpoint left it."""
        loader = super().get_train_dataloader()
        getattr(loader, "base_dataloader", loader).generator = torch.Generator()  # accelerate wraps the loader
        return loader

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Names of the parameters that weight decay applies to."""
        return self._decay_names

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's, with the true epoch: passes over the training rows, not over the run."""
        self.state.epoch = self.state.global_step * self.global_batch_size / len(self.train_dataset)
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss (nats/token), perplexity and bits per byte of the first `eval_sequences` validation rows, as Trainer's
        metrics.
        """
        start = time.perf_counter()
        scored = self.score(eval_dataset if eval_dataset is not None else self.eval_dataset, self.eval_sequences)
        metrics = {
            f"{metric_key_prefix}_loss": scored.loss,
            f"{metric_key_prefix}_perplexity": scored.perplexity,
            f"{metric_key_prefix}_bits_per_byte": scored.bits_per_byte,
            f"{metric_key_prefix}_runtime": time.perf_counter() - start,
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def score(self, dataset: TokenDataset | MixedDataset, sequences: int | None = None) -> TextLoss:
        """The exact loss over the first `sequences` rows of `dataset` (None: all), shared out over the processes."""
        count = len(dataset) if sequences is None else min(sequences, len(dataset))
        mine = range(self.args.process_index, count, self.args.world_size)
        batch_size = self.args.per_device_eval_batch_size
        # Its own generator, so that evaluating more often leaves dropout in training as it was.
        loader = DataLoader(Subset(dataset, mine), batch_size=batch_size, generator=torch.Generator())
        # Sharded parameters are gathered by all processes together: each has to run as many forwards as the first.
        rounds = -(-len(range(0, count, self.args.world_size)) // batch_size)
        with self.accelerator.autocast():
            nats, tokens = sum_nats(self.model, self._padded(loader, rounds), self.args.device)
        totals = torch.tensor([nats, tokens], dtype=torch.float64, device=self.args.device)
        totals = self.accelerator.reduce(totals, reduction="sum")
        return TextLoss(totals[0].item(), int(totals[1]), dataset.num_bytes / dataset.num_tokens)

    def _padded(self, loader: DataLoader, rounds: int) -> Iterator[dict[str, torch.Tensor]]:
        """The batches of `loader`, then batches that count nothing until `rounds` have been given."""
        given = 0
        for batch in loader:
            given += 1
            yield batch
        for _ in range(given, rounds):
            row = self.eval_dataset[0]
            yield {
                key: value[None] if key != "labels" else torch.full_like(value[None], -100)
                for key, value in row.items()
            }


def decay_parameter_names(model: torch.nn.Module) -> list[str]:
    """Names of the trainable parameters with two or more dimensions that no module exempts by its `no_weight_decay`."""
    exempt = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in getattr(module, "no_weight_decay", ())
    }
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim >= 2 and name not in exempt
    ]
