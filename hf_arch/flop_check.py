"""The cost of a model against torch's counter and its filled cache, of what `check_model` holds every model to."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

import hf_arch
from hf_arch.layers.filled_cache import cached_tensors


class Violation(Exception):
    """An invariant does not hold; the message says by how much."""


@torch.no_grad()
def check_flops(model: Any, ids: Tensor) -> str:
    """The cost against torch's counter, which sees every matrix product, and against the states that it cannot see.

    A step costs at least what is counted, and two FLOPs for each entry of a matrix state; no more than a few for each
    entry of the cache beyond that. A whole row costs at least as much as its tokens one at a time, or, where it has
    fewer products than they (latent attention expands keys once in a row, and takes latents in a step), that share.
    """
    length = ids.shape[1]
    cost, cache = hf_arch.cost(model.config, length, batch_size=len(ids)), DynamicCache(config=model.config)
    model.set_attn_implementation("eager")  # the counter knows no other product of attention
    model(ids, past_key_values=cache)
    with FlopCounterMode(display=False) as counter:
        model(ids[:, :1], past_key_values=cache)
    steps = [cost.decode_flops(context) for context in range(1, length + 1)]
    row = cost.flops_per_token_forward * ids.numel()
    if not all(math.isfinite(value) and value > 0 for value in (*steps, row)):
        raise Violation(f"cost gives {min(*steps, row):,.0f} FLOPs; expected finite numbers above 0")
    counted, said = counter.get_total_flops(), steps[-1]
    if said < 0.98 * counted:
        raise Violation(f"a step costs {said:,.0f} FLOPs by `cost`, torch counts {counted:,.0f} in products alone")
    held = cached_tensors(cache)
    matrices = sum(tensor.numel() for tensor, recurrent in held if recurrent and tensor.dim() > 3)
    products = cost.decode_flops(length) - len(ids) * cost.linear_flops
    if products < 2 * matrices:
        raise Violation(
            f"a step mixes for {products:,.0f} FLOPs by `cost`, its matrix states have {matrices:,} entries"
        )
    entries = sum(tensor.numel() for tensor, _ in held)
    if said > 2 * counted + 32 * entries:
        raise Violation(f"a step costs {said:,.0f} FLOPs by `cost`; torch counts {counted:,.0f} in products")
    if row < 0.98 * sum(steps) and row < 0.98 * sum(steps) * _row_over_steps(model, ids):
        raise Violation(f"a row costs {row:,.0f} FLOPs by `cost`, its tokens one at a time {sum(steps):,.0f}")
    return f"a step {said:,.0f} by `cost`, {counted:,} counted in products"


def _row_over_steps(model: Any, ids: Tensor) -> float:
    """The products of a row over those of its tokens one at a time, as torch counts both."""
    with FlopCounterMode(display=False) as whole:
        model(ids, use_cache=False)
    cache = DynamicCache(config=model.config)
    with FlopCounterMode(display=False) as single:
        for token in ids.split(1, dim=1):
            model(token, past_key_values=cache)
    return float(whole.get_total_flops() / max(single.get_total_flops(), 1))
