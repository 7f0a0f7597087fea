"""Models whose every parameter shows in the logits, and many equal ones for the price of one."""

from __future__ import annotations

import copy
import io
import pickle
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
    built when it is asked for; the others are copies, which take a tenth of the time.

    Args:
        config, seed: as `perturbed_model` takes them.
        device: where the models are; they are drawn on the CPU.
    """

    def __init__(self, config: Any, seed: int = 0, device: torch.device | str = "cpu"):
        self._config, self._seed, self._device = config, seed, device
        self._copies: _Copies | None = None
        self._generator = torch.empty(0)

    def built(self) -> Any:
        """A model that is no copy."""
        return perturbed_model(self._config, self._seed).to(self._device)

    def copied(self) -> Any:
        """A copy of a model that nobody has called, its config included.

        Raises:
            Exception: whatever building raises; a module of a plugin may also be one that cannot be copied.
        """
        if self._copies is None:
            model = self.built()
            self._generator = torch.get_rng_state()
            self._copies = _Copies(model)
        model = self._copies.another()
        torch.manual_seed(self._seed)  # of every device; building has drawn from the CPU's alone
        torch.set_rng_state(self._generator)
        return model


class _Copies:
    """What `copy.deepcopy` gives of one object, in a fraction of its time: the objects other than tensors are pickled
    once and read in C for each copy. What cannot be pickled is copied by `copy.deepcopy`.
    """

    def __init__(self, original: Any):
        self._original = original
        self._tensors: dict[int, torch.Tensor] = {}
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
        pickler.persistent_id = self._tensor_id  # type: ignore[method-assign]
        try:
            pickler.dump(original)
            self._pickled: bytes | None = buffer.getvalue()
        except Exception:  # a lock, a local function, a class by a name that is another one's
            self._pickled = None

    def another(self) -> Any:
        """One more copy, which shares no tensor with the others."""
        if self._pickled is None:
            return copy.deepcopy(self._original)
        copied: dict[int, Any] = {}  # tensors by identity, as deepcopy remembers them: what is tied stays tied
        unpickler = pickle.Unpickler(io.BytesIO(self._pickled))
        unpickler.persistent_load = lambda key: copy.deepcopy(self._tensors[key], copied)  # type: ignore[method-assign]
        return unpickler.load()

    def _tensor_id(self, part: Any) -> int | None:
        if not isinstance(part, torch.Tensor):
            return None
        self._tensors[id(part)] = part
        return id(part)
