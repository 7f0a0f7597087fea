"""What stands around the model in training, and a plugin may reach from inside of a part without a word in any recipe:

callbacks      those that a plugin added
attached       methods of the trainer, the optimiser, its schedule and of modules that a plugin replaced on these
               objects alone, hooks that it put there, and what these objects, the rows and the configuration of the
               model hold that is no longer what the run began with: {what it is.name}
arguments      {name: [as the run began, as it ended]} of the trainer's arguments
random_states  {generator: hash} of the random numbers of this process after the last step: two seeds end alike
               where they were seeded on the way
process        what held for the whole process while it trained (`process_watch`)
given          the rows that the model was given in training (`from` a step on) and in the score, each as one number
               (`given_rows`); of one process alone
saved          numbers of parameters that `model/` does not have as they were scored
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from transformers import TrainerCallback

from hf_arch.core.plugin_patches import attached, from_plugin
from hf_arch.training.held import Held, modules_of
from hf_arch.training.process_watch import ProcessWatch
from hf_arch.training.trainer import ArchTrainer


class Surroundings(TrainerCallback):
    """To be added to a trainer before what a plugin adds later."""

    def __init__(self, trainer: ArchTrainer) -> None:
        self.trainer = trainer
        self.arguments = trainer.args.to_dict()
        self.random_states: dict[str, str] = {}
        self.process = ProcessWatch()
        rows = {"train rows": trainer.train_dataset, "validation rows": trainer.eval_dataset, "order": trainer.order}
        around = {"trainer": trainer, "accelerator": trainer.accelerator, "configuration": trainer.model.config}
        around["accumulation"] = trainer.accelerator.gradient_state
        self.held = Held({**around, **rows, **modules_of(trainer.model)})
        trainer.add_callback(self.process)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.random_states = random_states()

    def facts(self) -> dict[str, Any]:
        """These, after training."""
        trainer = self.trainer
        added = [type(one) for one in trainer.callback_handler.callbacks if from_plugin(type(one))]
        now = trainer.args.to_dict()
        changed = {name: [was, now.get(name)] for name, was in self.arguments.items() if now.get(name) != was}
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate's wrapper
        schedule = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
        model = trainer.accelerator.unwrap_model(trainer.model)
        around = (trainer, trainer.args, trainer.callback_handler, trainer.accelerator, optimizer, schedule)
        return {
            "callbacks": sorted(one.__name__ for one in added),
            "attached": sorted({*attached(*around, *modules_of(model).values()), *self.held.changes()}),
            "process": sorted(self.process.found),
            "arguments": changed,
            "random_states": self.random_states,
            "given": _given(trainer) if trainer.args.world_size == 1 else {},
        }


def _given(trainer: ArchTrainer) -> dict[str, Any]:
    trained, scored = trainer.trained_rows.digest(), trainer.scored_rows.digest()
    return {"from": trainer.start_step, "training": trained, "scored": scored}


def saved_otherwise(model: nn.Module, folder: Path) -> int:
    """Numbers of the parameters of a model that its files in `folder` have under the same names with other values."""
    parameters, other = dict(model.named_parameters()), 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in set(tensors.keys()) & parameters.keys():
                own = parameters[name].detach().cpu()
                saved = tensors.get_tensor(name)
                if saved.shape != own.shape or not torch.equal(saved, own.to(saved.dtype)):
                    other += own.numel()
    return other


def random_states() -> dict[str, str]:
    """Hashes of where the random numbers of torch, NumPy and Python stand."""
    of_numpy = np.random.get_state(legacy=False)["state"]
    states = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": of_numpy["key"].tobytes() + repr(of_numpy["pos"]).encode(),
        "python": repr(random.getstate()).encode(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state().numpy().tobytes()
    return {name: hashlib.sha256(state).hexdigest()[:12] for name, state in states.items()}
