"""Checkpoints of other libraries, in both directions: transformers, flash-linear-attention (FLA), nanoGPT, litgpt.

    model = hf_arch.from_foreign(config_dict, state_dict)          # an eval-ready fp32 model of ours
    config_dict, state_dict = hf_arch.to_foreign(model, "llama")

A family is one file here: what its config says in our terms and back, and which of its tensors is which of ours. An
option that has an effect there and is not supported here is an error.
"""

from __future__ import annotations

import importlib
import pkgutil

from .base import FOREIGN, current_tensors, from_foreign, to_foreign

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["FOREIGN", "current_tensors", "from_foreign", "to_foreign"]
