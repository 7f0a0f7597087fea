"""Makes `hf_arch` a model of lm_eval in every process that uses lm_eval, without an import by hand:

    lm_eval --model hf_arch --model_args pretrained=PATH --tasks hellaswag

lm_eval (0.4.13) has no entry points for models. torch has, for what should load along with it (`torch.backends`), and
every evaluation imports torch. This module is what that entry point loads. It stands outside the package, because to
import hf_arch would register architectures with transformers, which is nothing that an import of torch should do. It
waits for lm_eval's package of models (loaded when a model is first asked for while none is registered) and
enters a name after its own ones; hf_arch is imported when that name is asked for.

It runs at every import of torch in its environment, so it imports nothing that torch has not, and fails in nothing:
an error here would be an error of `import torch`. `TORCH_DEVICE_BACKEND_AUTOLOAD=0` turns it off.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODELS = "lm_eval.models"
MODEL = "hf_arch.evaluation.lm_eval:ArchLM"


def autoload() -> None:
    """Enter the model now where lm_eval's are loaded, else as soon as they are."""
    if hasattr(sys.modules.get(MODELS), "__all__"):  # set when it has registered its own
        _enter()
    elif not any(isinstance(finder, _WaitForModels) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WaitForModels())


def _enter() -> None:
    try:
        from lm_eval.api.registry import model_registry

        if "hf_arch" not in model_registry:
            model_registry.register("hf_arch", target=MODEL)
    except Exception as error:  # a registry of another version: evaluations of other models go on
        warnings.warn(f"`--model hf_arch` is not known to this lm_eval: {error}", stacklevel=2)


class _WaitForModels(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODELS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _LoadThenEnter(spec.loader)
        return spec


class _LoadThenEnter(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its own loader, which knows its source and its resources.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        _enter()
