"""Every private or version-dependent name of Trainer, accelerate and torch that training touches, in one place.

`tests/test_compat.py` says of each name what rests on it.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves as tree_leaves
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

# With WANDB_MODE=offline, transformers prints that at import, also where W&B is not used. `describe_trackers` says it.
with redirect_stdout(io.StringIO()):
    from transformers import Trainer as Trainer
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK as INTEGRATION_TO_CALLBACK


class AlignedLabelSmoother(LabelSmoother):
    """Of labels that already stand where they are predicted; Trainer asks for a shift by the model's class."""

    def __call__(self, model_output: Any, labels: torch.Tensor, shift_labels: bool = False, **kwargs: Any) -> Any:
        return super().__call__(model_output, labels, shift_labels=False, **kwargs)


class HookedTrainer(Trainer):
    """Trainer, whose private hooks are methods with names of their own: override those, and call `super()`."""

    def write_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write everything that a checkpoint holds."""
        super()._save_checkpoint(model, trial)

    def write_optimizer(self, output_dir: str) -> None:
        """Write the states of optimiser and schedule, as a part of a checkpoint."""
        super()._save_optimizer_and_scheduler(output_dir)

    def read_optimizer(self, checkpoint: str | None) -> None:
        """Read the states of optimiser and schedule from a checkpoint, if there is one."""
        super()._load_optimizer_and_scheduler(checkpoint)

    def train_sampler(self, train_dataset: Any = None) -> Any:
        """The order of the training rows."""
        return super()._get_train_sampler(train_dataset)

    def gradient_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """The norm before clipping, asked for after the last backward pass of a step and before the optimiser."""
        return super()._get_grad_norm(model, grad_norm)

    def load_best(self) -> None:
        """Take the weights of the best checkpoint, at the end of training."""
        super()._load_best_model()

    def evaluate_step(self) -> bool:
        """Evaluate as after a step, for schedules that follow the loss and the choice of the best checkpoint too;
        whether it is the best so far."""
        return self._determine_best_metric(metrics=self._evaluate(None, None), trial=None)

    @property
    def running_loss(self) -> torch.Tensor:
        """What has been added up for the next log: a tensor that Trainer changes in place."""
        return self._tr_loss

    @property
    def last_logged_step(self) -> int:
        """The step of the last log, from which the running loss counts."""
        return self._globalstep_last_logged

    @last_logged_step.setter
    def last_logged_step(self, step: int) -> None:
        self._globalstep_last_logged = step

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self.read_optimizer(checkpoint)

    def _load_best_model(self) -> None:
        self.load_best()

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.write_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.write_optimizer(output_dir)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.train_sampler(train_dataset)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        return self.gradient_norm(model, grad_norm)


def use_one_gpu(args: TrainingArguments) -> None:
    """Keep Trainer from spreading one process over all GPUs (nn.DataParallel), in larger batches."""
    if args.n_gpu > 1:
        args._n_gpu = 1


def mixed_precision(state: AcceleratorState) -> str | None:
    """The dtype of accelerate's mixed precision, None without."""
    return None if state._mixed_precision == "no" else state._mixed_precision


def set_fsdp(state: AcceleratorState, plugin: Any) -> None:
    """Make accelerate's state one of FSDP, whatever it has found out about the devices."""
    state.fsdp_plugin = plugin
    # Both: later instances copy the type from the shared state.
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def has_gathered(optimizer: Any) -> bool:
    """Whether a ZeroRedundancyOptimizer holds the states of all processes, after `consolidate_state_dict`."""
    return bool(optimizer._all_state_dicts)


def forget_gathered(optimizer: Any) -> None:
    """Drop the states of the other processes."""
    optimizer._all_state_dicts.clear()


def set_last_rates(scheduler: Any, rates: list[float]) -> None:
    """Make a scheduler of torch report these learning rates as its last ones."""
    scheduler._last_lr = rates


def modes_of_operations() -> list[Any]:
    """What sees every function, or every operation, of torch in this thread now: entered and not left."""
    return [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]


def saves_tensors_otherwise() -> bool:
    """Whether something is called now with each tensor that is kept for a backward pass."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def has_gradient_hook(of: torch.nn.Parameter | torch.nn.Module) -> bool:
    """Whether something is called with the gradient of a parameter, or with what flows back through a module."""
    if isinstance(of, torch.nn.Module):
        return bool(of._backward_hooks or of._backward_pre_hooks)
    return bool(of._backward_hooks or getattr(of, "_post_accumulate_grad_hooks", None))
