"""Which kernels an operator runs on: plain torch, or those of flash-linear-attention (FLA, the package `fla`).

FLA's kernels are taken where they can run, that is for tensors on a CUDA device with `fla` and `triton` installed; the
device of the tensors decides at every call, and nothing is imported before the first one. `HF_ARCH_BACKEND=torch`
forces plain torch. Each adapter below has the arguments and results of our operator of that name.

What FLA's kernels do not cover stays with plain torch: fp64, single tokens (a step is a handful of products), a bonus
without a vector decay, a constant decay that is learned, the selective scan of Mamba (FLA has none; that of Mamba-2 is
gated linear attention) and the diagonal state space.

Documents: FLA wants them as one row, with their borders in `cu_seqlens` and a state for each.
Legend: B batch, T time, H heads, K key dim, V value dim, M slots, S documents of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..environment import read


def use_fla(q: Tensor) -> bool:
    """Whether FLA's kernels are to work on tensors like q [B, T, ...].

    Raises:
        ConfigError: HF_ARCH_BACKEND is set to something unknown.
    """
    if read("HF_ARCH_BACKEND") == "torch" or q.device.type != "cuda" or q.dtype == torch.float64 or q.shape[1] == 1:
        return False
    return _installed()


@lru_cache(maxsize=1)
def _installed() -> bool:
    return find_spec("triton") is not None and find_spec("fla") is not None


def _kernel(module: str, name: str) -> Callable[..., Any]:
    # By name: a bundled model's imports are taken for requirements, and this one is none.
    return getattr(import_module(f"fla.ops.{module}"), name)


def fla_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    *,
    bonus: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`linear_attention`; a bonus needs a vector decay (see `covers_linear_attention`)."""
    arrays = {"q": q.to(v.dtype), "k": k.to(v.dtype), "v": v, "g": g}
    options: dict[str, Any] = {"scale": scale}
    if bonus is not None:
        kernel = _kernel("rwkv6", "chunk_rwkv6")
        arrays = dict(zip(("r", "k", "v", "w"), arrays.values(), strict=True))
        options["u"] = bonus.to(v.dtype)
    elif g is not None and g.dim() == 4:
        kernel = _kernel("gla", "chunk_gla")
    else:
        kernel = _kernel("simple_gla", "chunk_simple_gla")
        if g is not None and g.dim() == 1:
            arrays["g"], options["g_gamma"] = None, g.float()
    return _on_documents(kernel, arrays, initial_state, output_final_state, segment_ids, **options)


def covers_linear_attention(g: Tensor | None, bonus: Tensor | None) -> bool:
    """Whether FLA has a kernel for such decays."""
    if bonus is not None:
        return g is not None and g.dim() == 4
    return g is None or g.dim() != 1 or not g.requires_grad


def fla_ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`ssd` without its skip: queries C, keys B, values dt x, a scalar log decay dt A and a state [B, H, V, K]."""
    ratio = x.shape[2] // B.shape[2]
    B, C = (tensor.to(x.dtype).repeat_interleave(ratio, 2) for tensor in (B, C))
    values = (dt.unsqueeze(-1) * x).to(x.dtype)
    return _on_documents(
        _kernel("simple_gla", "chunk_simple_gla"),
        {"q": C, "k": B, "v": values, "g": dt * A},
        initial_state,
        output_final_state,
        segment_ids,
        scale=1.0,
        state_v_first=True,
    )


def fla_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`delta_rule`; without gates in half precision by a kernel of its own, which refuses fp32."""
    arrays = {"q": q.to(v.dtype), "k": k.to(v.dtype), "v": v, "beta": beta.to(v.dtype)}
    if g is None and v.dtype != torch.float32:
        kernel = _kernel("delta_rule", "chunk_delta_rule")
    else:
        kernel = _kernel("gated_delta_rule", "chunk_gated_delta_rule")
        arrays["g"] = torch.zeros_like(beta, dtype=torch.float32) if g is None else g
    return _on_documents(kernel, arrays, initial_state, output_final_state, segment_ids, scale=scale)


def fla_dplr_delta_rule(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`dplr_delta_rule`."""
    arrays = {"q": r.to(v.dtype), "k": k.to(v.dtype), "v": v, "a": a.to(v.dtype), "b": b.to(v.dtype), "gk": w}
    kernel = _kernel("generalized_delta_rule", "chunk_dplr_delta_rule")
    return _on_documents(kernel, arrays, initial_state, output_final_state, segment_ids, scale=scale)


def fla_gated_slot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    f: Tensor,
    *,
    scale: float = 1.0,
    initial_state: tuple[Tensor, Tensor] | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """`gated_slot_attention`."""
    arrays = {"q": q.to(v.dtype), "k": k.to(v.dtype), "v": v, "s": s.to(v.dtype), "g": f}
    kernel = _kernel("gsa", "chunk_gsa")
    return _on_documents(kernel, arrays, initial_state, output_final_state, segment_ids, scale=scale)


def fla_hgrn_scan(
    i: Tensor,
    f: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`hgrn_scan`; the kernel takes the logarithm of the gates, for which 0 is the smallest positive number."""
    log_gates = f.float().clamp_min(torch.finfo(torch.float32).tiny).log()
    kernel, arrays = _kernel("hgrn", "fused_recurrent_hgrn"), {"x": i.float(), "g": log_gates}
    h, state = _on_documents(kernel, arrays, initial_state, output_final_state, segment_ids)
    return h.to(i.dtype), state


class Documents(NamedTuple):
    """The documents of a batch laid end to end: their borders [S + 1], and each row's first and last one [B]."""

    borders: Tensor
    first: Tensor
    last: Tensor


@lru_cache(maxsize=1)  # by identity: all layers of a call share one tensor, and reading it waits for the device
def find_documents(segment_ids: Tensor) -> Documents:
    """The documents of `segment_ids` [B, T]; a row always starts one."""
    starts = torch.ones_like(segment_ids, dtype=torch.bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    borders = torch.cat([starts.flatten().nonzero().flatten(), starts.new_tensor([starts.numel()], dtype=torch.long)])
    last = starts.sum(1).cumsum(0) - 1
    return Documents(borders, last - starts.sum(1) + 1, last)


def _on_documents(
    kernel: Callable[..., Any],
    arrays: dict[str, Any],
    initial_state: Any,
    output_final_state: bool,
    segment_ids: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """Calls `kernel(**arrays, ...)` on rows, or on the documents of all rows as one row.

    The initial state (a tensor or a pair) belongs to the first document of each row, the final one to the last."""
    options["output_final_state"] = output_final_state
    if segment_ids is None:
        out, final = kernel(**arrays, initial_state=_each(Tensor.float, initial_state), **options)
        return out, _each(Tensor.float, final) if output_final_state else None
    documents = find_documents(segment_ids)

    def spread(state: Tensor) -> Tensor:
        every = state.new_zeros(len(documents.borders) - 1, *state.shape[1:], dtype=torch.float32)
        return every.index_copy(0, documents.first, state.float())

    out, final = kernel(
        **{name: None if array is None else array.flatten(0, 1).unsqueeze(0) for name, array in arrays.items()},
        initial_state=_each(spread, initial_state),
        cu_seqlens=documents.borders,
        **options,
    )
    out = out.view(*segment_ids.shape, *out.shape[2:])
    return out, _each(lambda state: state[documents.last].float(), final) if output_final_state else None


def _each(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Of a state that is a tensor, several of them, or None."""
    if state is None or isinstance(state, Tensor):
        return None if state is None else function(state)
    return tuple(function(part) for part in state)
