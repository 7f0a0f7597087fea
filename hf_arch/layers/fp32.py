"""What stays fp32 whatever the dtype of the model: decays, step sizes, rotary frequencies, the bias of a router.

bf16 keeps 8 bits: a rotary frequency rounded so is wrong by whole turns a few thousand tokens on, and a decay near one
rounds to no decay. A module lists such tensors of its own in `keep_fp32`; every way of casting (`.to`, `.bfloat16()`,
`.half()`, of the model, of a part of it, or of a wrapper around it), of building (`from_config(dtype=)`) and of loading
(`from_pretrained(dtype=)`, `load_state_dict(assign=True)`) leaves them in fp32. `double()` is honoured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def is_low_precision(x: Tensor) -> bool:
    """Whether x is floating point of less than 32 bits."""
    return x.is_floating_point() and x.element_size() < 4


class KeepsFp32(nn.Module):
    """Base of modules with tensors that no cast may round."""

    keep_fp32: ClassVar[tuple[str, ...]] = ()
    """Names of own parameters and buffers (not those of submodules); those that are None or missing are passed over."""

    def kept_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of what `keep_fp32` names, as far as it is here."""
        for name in self.keep_fp32:
            held = self._parameters.get(name, self._buffers.get(name))
            if held is not None:
                yield name, held

    def restore_fp32(self) -> None:
        """Widen what was made or put here in a low precision."""
        for _, held in self.kept_tensors():
            if is_low_precision(held):
                held.data = held.data.float()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = {id(tensor) for _, held in self.kept_tensors() for tensor in (held, held.grad) if tensor is not None}

        def careful(x: Tensor) -> Tensor:
            out = fn(x)
            if id(x) in kept and is_low_precision(out):
                return x.to(device=out.device, dtype=torch.float32)
            return out

        return super()._apply(careful, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.restore_fp32()


class Fp32BiasLinear(KeepsFp32, nn.Linear):
    """A Linear whose bias is a decay or step size: added in fp32 to the product, whatever the weight's dtype.

    [..., in_features] -> [..., out_features], in fp32 where the weight or the autocast is of lower precision.
    """

    keep_fp32: ClassVar[tuple[str, ...]] = ("bias",)

    def forward(self, input: Tensor) -> Tensor:
        if self.bias is None or not (is_low_precision(input) or torch.is_autocast_enabled(input.device.type)):
            return super().forward(input)
        return F.linear(input, self.weight) + self.bias


def restore_fp32(model: nn.Module) -> None:
    """`KeepsFp32.restore_fp32` of every part of a model."""
    for module in model.modules():
        if isinstance(module, KeepsFp32):
            module.restore_fp32()


def kept_in_fp32(model: nn.Module) -> dict[str, Tensor]:
    """Everything of `model` that stays fp32, by its full name: the one list that every way of casting honours."""
    return {
        f"{path}.{name}" if path else name: held
        for path, module in model.named_modules()
        if isinstance(module, KeepsFp32)
        for name, held in module.kept_tensors()
    }


def loading_patterns(model: nn.Module) -> set[str]:
    """Those of `kept_in_fp32` that files hold, as the patterns that transformers' loading looks for in names, `*` for a
    layer's number."""
    stored = model.state_dict(keep_vars=True)
    return {re.sub(r"\.\d+\.", ".*.", name) + "$" for name in kept_in_fp32(model) if name in stored}
