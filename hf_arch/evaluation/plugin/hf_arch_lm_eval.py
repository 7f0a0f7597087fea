"""Makes `hf_arch` a model of lm_eval in every process that uses lm_eval, without an import by hand:

    lm_eval --model hf_arch --model_args pretrained=PATH --tasks hellaswag

lm_eval (0.4.13) has no entry points for models. torch has, for what should load along with it (`torch.backends`), and
every evaluation imports torch. This module is what that entry point loads. It stands outside the package, because to
import hf_arch would register architectures with transformers, which is nothing that an import of torch should do. It
waits for lm_eval's registry and enters a name there; hf_arch is imported when that name is asked for.
`TORCH_DEVICE_BACKEND_AUTOLOAD=0` turns it off.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTRY = "lm_eval.api.registry"
MODEL = "hf_arch.evaluation.lm_eval:ArchLM"


def autoload() -> None:
    """Enter the model now where lm_eval is loaded, else as soon as it is."""
    if hasattr(sys.modules.get(REGISTRY), "model_registry"):
        _enter(sys.modules[REGISTRY])
    elif not any(isinstance(finder, _WaitForRegistry) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WaitForRegistry())


def _enter(registry: ModuleType) -> None:
    models = getattr(registry, "model_registry", None)
    if models is not None and "hf_arch" not in models:
        models.register("hf_arch", target=MODEL)


class _WaitForRegistry(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _LoadThenEnter(spec.loader)
        return spec


class _LoadThenEnter(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        _enter(module)
