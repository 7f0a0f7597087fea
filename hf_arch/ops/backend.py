"""Which kernels an operator runs on: plain torch, or those of flash-linear-attention (FLA, the package `fla`).

FLA's kernels are taken where they can run, that is for tensors on a CUDA device with `fla` and `triton` installed; the
device of the tensors decides at every call, and nothing is imported before the first one. `HF_ARCH_BACKEND=torch`
forces plain torch. Each recurrence says next to its other forms which kernel it has and what that covers.

What FLA's kernels do not cover stays with plain torch: fp64, single tokens (a step is a handful of products), a bonus
without a vector decay, a constant decay that is learned, the selective scan of Mamba (FLA has none; that of Mamba-2 is
gated linear attention) and the diagonal state space. So do fp32 tensors unless torch may round their products to TF32,
which the kernels do (errors near 1e-3 instead of 1e-6), and heads narrower than the tensor cores' 16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..environment import read
from .documents import find_documents


def use_fla(q: Tensor, rounds_fp32: bool = True) -> bool:
    """Whether FLA's kernels are to work on tensors like q [B, T, ...]; `rounds_fp32`: those that are wanted round fp32.

    Raises:
        ConfigError: HF_ARCH_BACKEND is set to something unknown.
    """
    if read("HF_ARCH_BACKEND") == "torch" or q.device.type != "cuda" or q.dtype == torch.float64 or q.shape[1] == 1:
        return False
    return _installed() and (q.dtype != torch.float32 or not rounds_fp32 or _tf32_allowed())


def _tf32_allowed() -> bool:
    """Whether torch's own fp32 products may be in TF32. Not under a compiler, which cannot trace the question."""
    if torch.compiler.is_dynamo_compiling():
        return False
    matmul = torch.backends.cuda.matmul
    # From torch 2.9 on; the older name raises where only the newer one was set.
    precision = getattr(matmul, "fp32_precision", None)
    return bool(matmul.allow_tf32) if precision is None else precision == "tf32"


@lru_cache(maxsize=1)
def refuses_gated_gradients() -> bool:
    """Whether FLA raises in the backward pass of its kernels with one decay a head: Triton 3.4 to 3.7.0 compiles one of
    them wrongly for Hopper GPUs (FLA's issue 640), unless its form for tilelang is installed.
    """
    utils = import_module("fla.utils")
    affected = utils.IS_NVIDIA_HOPPER and utils.TRITON_ABOVE_3_4_0 and not getattr(utils, "TRITON_ABOVE_3_7_1", False)
    return bool(affected) and find_spec("tilelang") is None


def needs_gradients(*tensors: Any) -> bool:
    """Whether a backward pass may come."""
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in tensors)


@lru_cache(maxsize=1)
def _installed() -> bool:
    return find_spec("triton") is not None and find_spec("fla") is not None


def run_fla(
    name: str,
    arrays: dict[str, Any],
    initial_state: Any,
    output_final_state: bool,
    segment_ids: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """Calls a kernel of FLA on rows, or on the documents of all rows as one row.

    Args:
        name: module and function below `fla.ops`, e.g. "gla.chunk_gla".
        arrays: its tensors [B, T, ...] by name, or None.
        initial_state: a tensor, a tuple of them or None; belongs to the first document of each row.
        output_final_state: whether to return the state after the last token, which is of each row's last document.
        segment_ids: [B, T] or None. FLA wants documents as one row, their borders in `cu_seqlens`, a state for each.
        options: of the kernel.

    Returns:
        its output [B, T, ...], and the final state in fp32 or None.
    """
    kernel = _kernel(name)
    options["output_final_state"] = output_final_state
    if segment_ids is None:
        out, final = kernel(**arrays, initial_state=map_state(Tensor.float, initial_state), **options)
        return out, map_state(Tensor.float, final) if output_final_state else None
    documents = find_documents(segment_ids)

    def spread(state: Tensor) -> Tensor:
        every = state.new_zeros(len(documents.borders) - 1, *state.shape[1:], dtype=torch.float32)
        return every.index_copy(0, documents.first, state.float())

    out, final = kernel(
        **{name: None if array is None else array.flatten(0, 1).unsqueeze(0) for name, array in arrays.items()},
        initial_state=map_state(spread, initial_state),
        cu_seqlens=documents.borders,
        **options,
    )
    out = out.view(*segment_ids.shape, *out.shape[2:])
    return out, map_state(lambda state: state[documents.last].float(), final) if output_final_state else None


def _kernel(name: str) -> Callable[..., Any]:
    # By name: a bundled model's imports are taken for requirements, and this one is none.
    module, _, function = name.rpartition(".")
    return getattr(import_module(f"fla.ops.{module}"), function)


def map_state(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """`function` of a state that is a tensor, of each part of a tuple, or None."""
    if state is None or isinstance(state, Tensor):
        return None if state is None else function(state)
    return tuple(function(part) for part in state)
