"""`ArchTrainer`: transformers' Trainer, with the data order, the decay groups and the evaluation that comparisons need.

- Order: sample p of a run is `order.rows(p)`, a function of (seed, step) alone; a resumed run seeks there in O(1). For
  this one Trainer "epoch" is the whole run.
- Decay: matrices only. Norms, biases, and what a mixer lists in `no_weight_decay` (decays, step sizes, gates) keep
  none. The optimiser is made by the builder that `training.optim` names (`hf_arch.optimizers`).
- Steps: one whose loss or gradient is not finite is skipped (`step_watch`), a checkpoint that cannot be written ends
  the run with the last good one intact, and a request to stop is agreed upon by all processes.
- Evaluation: nats summed over tokens, divided once, over the same sequences every time.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Subset
from transformers import TrainerControl

from hf_arch.core.failures import TrainingError
from hf_arch.data import SeededOrder, SeededSampler, TokenDataset
from hf_arch.data.dataset import MixedDataset, first_rows
from hf_arch.evaluation.metric import Measurement, Metric
from hf_arch.evaluation.perplexity import TextLoss, following_labels, sum_nats
from hf_arch.optimizers.base import OptimizerBuilder
from hf_arch.optimizers.choose import build_optimizer, check_parametrization, choose_optimizer
from hf_arch.optimizers.parameters import trained_parameters
from hf_arch.training.arguments import optimizer_settings
from hf_arch.training.auxiliary_losses import AuxiliaryLosses
from hf_arch.training.checkpoint_keeper import CheckpointKeeper
from hf_arch.training.checkpoints import divergence, where_to_go_on
from hf_arch.training.compat import AlignedLabelSmoother, HookedTrainer
from hf_arch.training.cpu_fsdp import fsdp_on_cpus
from hf_arch.training.decay import decay_parameter_names
from hf_arch.training.expert_balance import ExpertBalance
from hf_arch.training.given_rows import GivenRows
from hf_arch.training.gradient_norms import gradient_norms, parameter_groups
from hf_arch.training.interruption import StopAfterStep, StopRequest
from hf_arch.training.schedule import Rates, RateSchedule, follow_schedule
from hf_arch.training.step_watch import StepWatch


class _RunSampler(SeededSampler):
    """Counts as the whole run, wherever it starts: Trainer derives the number of steps from the length."""

    def __len__(self) -> int:
        return self.num_samples


class ArchTrainer(HookedTrainer):
    """Trainer for one run over packed rows.

    Args:
        order: which row each sample of the run is.
        train_dataset, eval_dataset: rows of `input_ids`, `labels` and, where the last position has a target too,
            `shift_labels` [T] (int64).
        eval_sequences: validation rows scored during training; None scores all.
        start_step: optimiser step of the checkpoint that is resumed from.
        keeper: writes what each checkpoint was trained with, and restores what Trainer does not.
        zero_redundancy: share the optimizer states out over the processes.
        watch: judges the steps; by default one with the usual limit that tells nobody.
        stop: a request that is obeyed after the step in which it comes.
        builder: what makes the optimiser; None takes Trainer's own that `args` name.
        metrics: what plugins measure at evaluations, by name.
        flops_per_token: what Trainer adds up to `total_flos`; None leaves its own estimate.
        rates: the learning rate of each step; None: by transformers' `lr_scheduler_type`.
    """

    eval_dataset: TokenDataset | MixedDataset
    control: TrainerControl
    label_smoother: Any
    lr_scheduler: Any
    optimizer: Any

    def __init__(
        self,
        *,
        order: SeededOrder,
        eval_sequences: int | None = None,
        start_step: int = 0,
        keeper: CheckpointKeeper | None = None,
        zero_redundancy: bool = False,
        watch: StepWatch | None = None,
        stop: StopRequest | None = None,
        builder: OptimizerBuilder | None = None,
        metrics: Mapping[str, Metric] | None = None,
        flops_per_token: float | None = None,
        rates: Rates | None = None,
        **kwargs: Any,
    ) -> None:
        self.zero_redundancy = zero_redundancy
        super().__init__(**kwargs)
        self.watch = watch or StepWatch()
        self.stop = stop or StopRequest()
        self.builder = builder or choose_optimizer({"optim": getattr(self.args.optim, "value", self.args.optim)})
        self.metrics = dict(metrics or {})
        self.flops_per_token = flops_per_token
        self.rates = rates
        self.add_callback(ExpertBalance())
        self.add_callback(StopAfterStep(self.stop))
        self.order = order
        self.eval_sequences = eval_sequences
        self.keeper = keeper
        self.start_step = start_step
        if self.label_smoother is not None:
            self.label_smoother = AlignedLabelSmoother(epsilon=self.args.label_smoothing_factor)
        if keeper is not None:
            keeper.trainer = self
            self.add_callback(keeper)
        # Named now: wrapping (FSDP) hides the modules that exempt their parameters.
        self._decay_names = decay_parameter_names(self.model)
        self._groups = parameter_groups(self.model)
        self._losses: list[torch.Tensor] = []  # of the micro-batches of the step that is under way
        self._logged_loss = torch.tensor(0.0)  # what Trainer had added up for its next log when the step began
        self._logged_step, self._skipped_since_log = start_step, 0
        self._group_norms: dict[str, torch.Tensor] = {}
        self._auxiliary = AuxiliaryLosses()
        self.trained_rows, self.scored_rows = GivenRows(), GivenRows()  # of this process

    def create_accelerator_and_postprocess(self) -> None:
        """As Trainer's, which on CPUs would drop FSDP; whether that is asked for has been checked by then."""
        with fsdp_on_cpus():
            super().create_accelerator_and_postprocess()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """What the builder makes; with `zero_redundancy` each process holds the states of a share of the parameters."""
        if self.optimizer is None:
            of = model or self.model
            assert self.builder.shards or not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
            check_parametrization(self.builder, self.model.config, zero_redundancy=self.zero_redundancy)
            settings = replace(
                optimizer_settings(self.args),
                trainer=lambda: super(ArchTrainer, self).create_optimizer(model),
                kind=lambda: self.get_optimizer_cls_and_kwargs(self.args, of),
            )
            self.optimizer = build_optimizer(self.builder, trained_parameters(of, self._decay_names), settings)
        if self.zero_redundancy:
            from hf_arch.training.zero import SharedOptimizer  # a quarter of a second, which other runs do not need

            if not isinstance(self.optimizer, SharedOptimizer):
                self.optimizer = SharedOptimizer(self.optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """As Trainer's, or the task's own `rates`."""
        if self.lr_scheduler is None and self.rates is not None:
            self.lr_scheduler = RateSchedule(optimizer or self.optimizer, self.rates, self.args.learning_rate)
        return super().create_scheduler(num_training_steps, optimizer)

    def write_optimizer(self, output_dir: str) -> None:
        wrapped = getattr(self.optimizer, "optimizer", None)  # by accelerate
        if self.zero_redundancy and wrapped is not None:
            wrapped.gather()
        super().write_optimizer(output_dir)

    def read_optimizer(self, checkpoint: str | None) -> None:
        super().read_optimizer(checkpoint)
        if self.keeper is not None and self.keeper.continuation.extended:
            follow_schedule(self.lr_scheduler)

    @property
    def global_batch_size(self) -> int:
        """Sequences in one optimiser step, over all processes and accumulation steps."""
        return self.get_total_train_batch_size(self.args)

    def train_sampler(self, train_dataset: Any = None) -> SeededSampler:
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

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; smoothing reads the labels that the model would read, and auxiliary losses are counted."""
        if self.label_smoother is not None and "labels" in inputs:
            inputs = dict(inputs)
            inputs["labels"] = following_labels(inputs["labels"], inputs.pop("shift_labels", None))
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        losses = getattr(self.accelerator.unwrap_model(model), "auxiliary_losses", None)
        if losses:
            # As Trainer scales the loss: that of a process is of the tokens of all.
            counted = kwargs.get("num_items_in_batch") is not None
            shared = self.args.average_tokens_across_devices and counted
            factor = self.args.world_size if shared else 1.0
            self._auxiliary.add(losses, factor if counted else factor / self.current_gradient_accumulation_steps)
        return loss

    def training_step(self, model: torch.nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self._losses:
            self._logged_loss = self.running_loss.clone()
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.trained_rows.add(inputs)
        self._losses.append(loss)
        return loss

    def gradient_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """The norm before clipping. Trainer asks for it after the last backward pass of a step and before the
        optimiser, which makes it the place to judge the step: without gradients an optimiser changes nothing."""
        norm = super().gradient_norm(model, grad_norm)
        step = self.state.global_step + 1
        loss, norm_value = self._agreed(torch.stack(self._losses).sum(), norm)
        self._losses.clear()
        allowed = self.watch.allows(step, loss, self._finite_under_scaler(loss, norm_value))
        self._auxiliary.end_step(taken=allowed)
        if not allowed:
            if self.watch.gives_up or self.is_deepspeed_enabled:  # DeepSpeed has taken the step already
                raise divergence(
                    f"the loss became {loss} and the gradient norm {norm_value}, and {self.watch.skipped_in_a_row} "
                    f"steps in a row were skipped (training.max_skipped_steps: {self.watch.max_skipped_steps})",
                    step,
                    self.args,
                )
            self.running_loss.copy_(self._logged_loss)
            self._skipped_since_log += 1
            model.zero_grad(set_to_none=True)
            return norm
        self.step_taken(loss)
        if step % self.args.logging_steps == 0 or step == 1:
            self._group_norms = self._unclipped_group_norms(model, norm_value)
        return norm

    def step_taken(self, loss: float) -> None:
        """Called with the loss of each step that is taken, in nats, before it is."""

    def mean_loss(self, total: float, steps: int) -> float:
        """The mean over the `steps` taken since the last log, whose losses add up to `total`."""
        return total / steps

    def _agreed(self, loss: torch.Tensor, norm: Any) -> tuple[float, float]:
        """Loss and gradient norm of the step, and in passing whether to stop: the same for all processes, which
        otherwise would skip, save and wait for each other at different steps."""
        if hasattr(norm, "full_tensor"):  # sharded
            norm = norm.full_tensor()
        norm = torch.as_tensor(math.nan if norm is None else norm, dtype=torch.float32, device=loss.device)
        if self.args.world_size == 1:
            loss_value, norm_value = torch.stack([loss.float(), norm]).tolist()  # one wait for the device, not two
            return loss_value, norm_value
        signal = torch.tensor(float(self.stop.received or 0), device=loss.device)
        every = self.accelerator.gather(torch.stack([loss.float(), norm, signal])[None]).cpu()
        self.stop.agreed = round(every[:, 2].max().item()) or None
        return every[:, 0].mean().item(), every[:, 1].mean().item()

    def _finite_under_scaler(self, loss: float, norm: float) -> float:
        """In fp16 the scaler skips steps whose gradient overflows, and lowers its scale: nothing to count."""
        return 0.0 if self.accelerator.scaler is not None and math.isfinite(loss) else norm

    def _unclipped_group_norms(self, model: torch.nn.Module, norm: float) -> dict[str, torch.Tensor]:
        """Norms by group as they were before clipping, which has scaled all gradients by one number."""
        norms = gradient_norms(model, self._groups)
        clipped = torch.linalg.vector_norm(torch.stack(list(norms.values())))
        return {group: value * (norm / clipped) for group, value in norms.items()} if clipped > 0 else norms

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """FLOPs of training on a micro-batch, by this architecture's own count."""
        if self.flops_per_token is None:
            return super().floating_point_ops(inputs)
        return int(self.flops_per_token * inputs["input_ids"].numel())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's, with the true epoch (passes over the training rows, not over the run), the mean loss of the
        steps that were taken (NaN where none was), and the gradient norms by group.
        """
        self.state.epoch = self.state.global_step * self.global_batch_size / len(self.train_dataset)
        if "loss" in logs:
            steps = self.state.global_step - self._logged_step
            taken = steps - self._skipped_since_log
            auxiliary = self._auxiliary.take(self.accelerator, taken)
            total = logs["loss"] * steps
            logs["loss"] = self.mean_loss(total, taken) - sum(auxiliary.values()) if taken > 0 else math.nan
            logs.update({f"loss_{name}": value for name, value in auxiliary.items()})
            logs.update({f"grad_norm_{group}": norm.item() for group, norm in self._group_norms.items()})
            self._logged_step, self._skipped_since_log, self._group_norms = self.state.global_step, 0, {}
        super().log(logs, start_time)

    def progress(self) -> dict[str, Any]:
        """What a checkpoint of Trainer leaves out: the watch, and the loss added up since the last logged step."""
        loss = self.accelerator.gather(self.running_loss[None]).mean().item()
        return {
            "watch": self.watch.state(),
            "loss": loss,
            "logged_step": self.last_logged_step,
            "skipped_since_log": self._skipped_since_log,
            "auxiliary": self._auxiliary.state(),
            "evaluation_due": self.stop.leaves_evaluation,
        }

    def restore_progress(self, progress: Mapping[str, Any]) -> None:
        """The same, set again; once Trainer has begun, which sets them to nothing."""
        self.watch.load_state(progress["watch"])
        self.running_loss.fill_(progress["loss"])
        self.last_logged_step = self._logged_step = progress["logged_step"]
        self._skipped_since_log = progress["skipped_since_log"]
        self._auxiliary.load_state(progress.get("auxiliary", {}), self.args.device)

    def write_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """As Trainer's; where it cannot be written, what there is of it goes, and the error names the last good one."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            if self.keeper is not None:
                self.keeper.open(folder)
            super().write_checkpoint(model, trial)
            if self.keeper is not None:
                self.accelerator.wait_for_everyone()  # each process writes files of its own
                self.keeper.close(folder)
        # torch.save and safetensors have errors of their own for a disk that is full.
        except (OSError, RuntimeError, SafetensorError) as error:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise TrainingError(
                f"the checkpoint of step {self.state.global_step} could not be written to {folder} ({reason}); "
                f"{where_to_go_on(folder.parent)}"
            ) from error

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """What `evaluation_numbers` measures, and the seconds it took, as Trainer's metrics."""
        start = time.perf_counter()
        numbers = {**self.evaluation_numbers(eval_dataset), "runtime": time.perf_counter() - start}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in numbers.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def evaluation_numbers(self, dataset: Any = None) -> dict[str, float]:
        """Loss (nats/token), perplexity, bits per byte and the plugins' metrics of `eval_sequences` rows of
        `dataset` (`first_rows`), by default the validation rows."""
        scored = self.score(self.eval_dataset if dataset is None else dataset, self.eval_sequences)
        return {
            "loss": scored.loss,
            "perplexity": scored.perplexity,
            "bits_per_byte": scored.bits_per_byte,
            **{f"metric_{name}": value for name, value in self.measure(dataset).items()},
        }

    def measure(self, dataset: Any = None, sequences: int | None = None) -> dict[str, float]:
        """{name: value} of the plugins' metrics over `sequences` rows (`first_rows`; by default those of evaluations),
        shared out over the processes."""
        measurement = Measurement(self.metrics)
        if self.metrics:
            dataset = self.eval_dataset if dataset is None else dataset
            rows = first_rows(dataset, sequences or self.eval_sequences)
            mine = rows[self.args.process_index :: self.args.world_size]
            loader = DataLoader(
                Subset(dataset, mine),
                batch_size=self.args.per_device_eval_batch_size,
                collate_fn=self.data_collator,
                generator=torch.Generator(),
            )
            with self.accelerator.autocast():
                measurement.add(self.accelerator.unwrap_model(self.model), loader, self.args.device)
            for name, sums in measurement.sums.items():
                total = self.accelerator.reduce(sums.to(self.args.device), reduction="sum")
                measurement.sums[name] = total.cpu()
        return measurement.values()

    def score(
        self, dataset: TokenDataset | MixedDataset, sequences: int | None = None, batch_size: int | None = None
    ) -> TextLoss:
        """The exact loss over `sequences` rows of `dataset` (`first_rows`; None: all), shared out over the
        processes, `batch_size` rows at a time, by default as many as evaluations take."""
        rows = first_rows(dataset, sequences)
        mine = rows[self.args.process_index :: self.args.world_size]
        batch_size = batch_size or self.args.per_device_eval_batch_size
        own = torch.Generator()  # so that evaluating more often leaves dropout in training as it was
        loader = DataLoader(Subset(dataset, mine), batch_size=batch_size, generator=own)
        # Sharded parameters are gathered by all processes together: each has to run as many forwards as the first.
        rounds = -(-len(rows[:: self.args.world_size]) // batch_size)
        given = self.scored_rows = GivenRows()
        with self.accelerator.autocast():
            nats, tokens = sum_nats(self.model, given.watched(self._padded(loader, rounds)), self.args.device)
        sums = torch.tensor([nats, tokens], dtype=torch.float64, device=self.args.device)
        totals = self.accelerator.reduce(sums, reduction="sum")
        return TextLoss(totals[0].item(), int(totals[1]), dataset.num_bytes / dataset.num_tokens)

    def _padded(self, loader: DataLoader, rounds: int) -> Iterator[dict[str, torch.Tensor]]:
        """The batches of `loader`, then batches that count nothing until `rounds` have been given."""
        yield from loader
        for _ in range(len(loader), rounds):
            row = self.eval_dataset[0]
            yield {
                key: torch.full_like(value[None], -100) if key in ("labels", "shift_labels") else value[None]
                for key, value in row.items()
            }
