"""hf_arch: a Hugging Face plugin to invent, ablate and compare language-model architectures.

    import hf_arch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("gla"))

Importing the package makes transformers' Auto classes know every architecture. It stays cheap: the models are imported
when one of them is looked up (`deferred.py`), so that a command line's `--help` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .deferred import register_with_auto_classes
from .environment import warn_unknown
from .versions import require_supported_versions

if TYPE_CHECKING:
    from .api import config_from_dict, cost, describe, list_architectures, tiny_config
    from .interchange import from_foreign, to_foreign

__version__ = "0.1.0.dev0"

_HOMES = {
    "config_from_dict": ".api",
    "cost": ".api",
    "describe": ".api",
    "list_architectures": ".api",
    "tiny_config": ".api",
    "from_foreign": ".interchange",
    "to_foreign": ".interchange",
}
__all__ = [
    "__version__",
    "config_from_dict",
    "cost",
    "describe",
    "from_foreign",
    "list_architectures",
    "tiny_config",
    "to_foreign",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # what is loaded when it is first asked for belongs to `help` and completion


require_supported_versions(f"hf_arch {__version__}")
register_with_auto_classes()
warn_unknown()
