"""hf_arch: a Hugging Face plugin to invent, ablate and compare language-model architectures.

    import hf_arch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("gla"))

Importing the package makes transformers' Auto classes know every architecture. It stays cheap: the models are imported
when one of them is looked up (`deferred.py`), so that a command line's `--help` needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .core.lazy import lazy_imports
from .deferred import register_with_auto_classes
from .environment import warn_unknown
from .versions import require_supported_versions

if TYPE_CHECKING:
    from .api import config_from_dict, cost, describe, list_architectures, tiny_config
    from .interchange import from_foreign, to_foreign

__version__ = "0.1.0.dev0"

_LAZY_IMPORTS = {
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


__getattr__ = lazy_imports(__name__, _LAZY_IMPORTS)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # what is loaded when it is first asked for belongs to `help` and completion


require_supported_versions(f"hf_arch {__version__}")
register_with_auto_classes()
warn_unknown()
