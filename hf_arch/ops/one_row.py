"""Products, norms, gates and attention of a single row in a decoding step on a CPU, where the general kernels are slow.

A product with weights drives everything else out of the processor's caches, so that each operation of torch behind it
fetches its code anew, some microseconds where its work takes a tenth of one. So there are few: products, norms and
gates are a call in C each, and so is all that attention does between its projections,

    o_h = sum_{j <= t} softmax_j( s R_t q_h . R_j k_{g(h), j} ) v_{g(h), j}

with the rotations R of RoPE, of which the last key's and the query's are done here, and its place in the cache.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..environment import read
from .compat import watched, watches_modules
from .native import Kernels, shapes_alone, threads_for

KERNELS = Kernels("one_row.c")
WIDEST_HEAD = 512
"""Features of a query that the kernel of attention has room for."""


def is_plain_row(x: Tensor) -> bool:
    """Whether x is one row [1, ..., D] of fp32 on the CPU, and nobody records, transforms or casts the operations."""
    if (
        watched()
        or torch.is_grad_enabled()
        or x.dtype != torch.float32
        or x.numel() != x.shape[-1]
        or x.device.type != "cpu"
    ):
        return False
    return type(x) is Tensor and not torch.is_autocast_enabled("cpu")


class RowKernels:
    """The kernels for one row: fp32, contiguous, on the CPU, with nobody watching and no gradient to take."""

    def __init__(self, library: Any) -> None:
        number, address, real = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
        self._norm = _typed(library.norm_row, *[address] * 5, number, real, real)
        self._gelu = _typed(library.gelu_row, address, address, number)
        self._layer_norm = _typed(library.layer_norm_row, *[address] * 6, number, real)
        self._gate = _typed(library.silu_gate_row, address, address, address, number)
        self._attend = _typed(library.attend_row, *[address] * 8, *[number] * 7, real, number)
        self._product = _typed(library.row_product, address, address, address, address, number, number, number)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`F.linear` of x [..., I] with weight [O, I] and bias [O] or None: [..., O]."""
        rows, width = weight.shape
        y = x.new_empty(*x.shape[:-1], rows)
        threads = threads_for(weight)
        self._product(*map(_address, (weight, x, bias, y)), rows, width, threads)
        return y

    def rms_norm(self, x: Tensor, add: Tensor | None, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
        """(x + add, its RMSNorm) of tensors [..., D] with weight [D] or None; x itself where `add` is None."""
        total, y, width = x if add is None else torch.empty_like(x), torch.empty_like(x), x.shape[-1]
        self._norm(*map(_address, (x, add, total, weight, y)), width, 1.0 / width, eps)
        return total, y

    def layer_norm(
        self, x: Tensor, add: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(x + add, its LayerNorm), likewise with bias [D] or None."""
        total, y = x if add is None else torch.empty_like(x), torch.empty_like(x)
        self._layer_norm(*map(_address, (x, add, total, weight, bias, y)), x.shape[-1], eps)
        return total, y

    def tanh_gelu(self, x: Tensor) -> Tensor:
        """`tanh_gelu` of any x."""
        y = torch.empty_like(x)
        self._gelu(x.data_ptr(), y.data_ptr(), x.numel())
        return y

    def silu_gated(self, x: Tensor, gate: Tensor) -> Tensor:
        """`x silu(gate)` of tensors of one shape."""
        y = torch.empty_like(x)
        self._gate(x.data_ptr(), gate.data_ptr(), y.data_ptr(), x.numel())
        return y

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        keys: Tensor,
        values: Tensor,
        past: int,
        scale: float,
    ) -> Tensor:
        """Attention of one token over itself and those before it, whose keys and values are written behind theirs.

        Args:
            query: [..., H K], before its rotation. key: [..., Hkv K], likewise. value: [..., Hkv V].
            rotary: (cos, sin), each [1, 1, R] of this token with R <= K, or None.
            keys, values: [1, Hkv, slots, K or V], of which `past` slots are filled.

        Returns:
            [..., H V].
        """
        key_heads, slots, width = keys.shape[1:]
        value_width, heads = values.shape[-1], query.shape[-1] // width
        out = query.new_empty(*query.shape[:-1], heads * value_width)
        cos, sin, turned = (None, None, 0) if rotary is None else (*(x.data_ptr() for x in rotary), rotary[0].shape[-1])
        given = (x.data_ptr() for x in (query, key, value))
        kept = (x.data_ptr() for x in (keys, values, out))
        sizes = (heads, key_heads, width, value_width, turned, past, slots)
        self._attend(*given, cos, sin, *kept, *sizes, scale, threads_for(keys))
        return out


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def row_kernels(x: Tensor) -> RowKernels | None:
    """Those for a decoding step of x [1, 1, D], where they may take the place of torch's operations all the way through
    the model; None elsewhere."""
    if not is_plain_row(x) or watches_modules() or shapes_alone():
        return None
    return None if read("HF_ARCH_BACKEND") == "torch" else _of_library(KERNELS.library)


@lru_cache
def _of_library(library: Any) -> RowKernels | None:
    return None if library is None else RowKernels(library)


def _typed(function: Any, *types: Any) -> Any:
    """A function of a library that converts its arguments itself."""
    function.argtypes, function.restype = types, None
    return function
