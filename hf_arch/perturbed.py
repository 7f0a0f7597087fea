"""Models whose every parameter shows in the logits, and many equal ones for the price of one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def perturbed_model(config: Any, seed: int = 0) -> Any:
    """A causal LM of this config in eval mode, every parameter moved off its initial value by N(0, 0.1)."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


class PerturbedModels:
    """Equal models, each as `perturbed_model` gives it and with torch's generator where that leaves it. The first is
    built when it is asked for; the others are copies, which take a third of the time.

    Args:
        config, seed: as `perturbed_model` takes them.
        device: where the models are; they are drawn on the CPU.
    """

    def __init__(self, config: Any, seed: int = 0, device: torch.device | str = "cpu"):
        self._config, self._seed, self._device = config, seed, device
        self._original: Any = None
        self._generator = torch.empty(0)

    def built(self) -> Any:
        """A model that is no copy."""
        return perturbed_model(self._config, self._seed).to(self._device)

    def copied(self) -> Any:
        """A copy of a model that nobody has called, its config included.

        Raises:
            Exception: whatever building raises; a module of a plugin may also be one that cannot be copied.
        """
        if self._original is None:
            self._original = self.built()
            self._generator = torch.get_rng_state()
        model = copy.deepcopy(self._original)
        torch.manual_seed(self._seed)  # of every device; building has drawn from the CPU's alone
        torch.set_rng_state(self._generator)
        return model
