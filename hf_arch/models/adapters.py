"""LoRA's default targets: what `get_peft_model(model, LoraConfig())` adapts where `target_modules` is left out.

PEFT looks them up by `model_type` in a table of its own. Where PEFT is imported when a model of ours is built, the
Linear layers of its mixers are entered there; HF_ARCH_PEFT_DEFAULTS=0 leaves the table alone. Nothing is imported for
it: where PEFT comes later, name `target_modules`, as in `LoraConfig(target_modules="all-linear")`.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from ..environment import is_on

VARIABLE = "HF_ARCH_PEFT_DEFAULTS"
TABLE = "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"


def lora_targets(model: nn.Module) -> list[str]:
    """Names, within a mixer, of the Linear layers of every mixer, without those whose weights the mixer reads."""
    found: set[str] = set()
    for module in model.modules():
        if hasattr(module, "cache_kind"):
            read: Any = getattr(module, "unquantized", ())
            layers = {name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
            found |= {name for name in layers if name not in read}
    return sorted(found)


def enter_lora_targets(model: nn.Module, model_type: str) -> None:
    """Add this model's targets to those that PEFT's table has for its type."""
    constants = sys.modules.get("peft.utils.constants")
    table = getattr(constants, TABLE, None)
    if table is not None and is_on(VARIABLE, default=True) and (targets := lora_targets(model)):
        table[model_type] = sorted({*table.get(model_type, ()), *targets})
