r"""Products of decays between all pairs of positions of a chunk, by halving.

Chunk forms need $\prod_{j < s \le i} d_s$ for every i >= j. Differences of cumulated logarithms lose precision or
overflow for strong decays, and cannot express d = 0. Halving never divides: neighbouring blocks of m steps join by

    between[i, j] = prefix[i] * suffix[j]          i in the second block, j in the first
    prefix'       = [prefix_1, total_1 * prefix_2]      (from the block's first step up to and including i)
    suffix'       = [suffix_1 * total_2, suffix_2]      (after j up to the block's last step)
    total'        = total_1 * total_2

so that only products of numbers in [0, 1] are formed. A decay of exactly 0, the start of a document, is exact as well.
Shapes: C chunk, a power of two.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def decay_products(decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four products above for scalar decays.

    Args:
        decay: [..., C], each in [0, 1].

    Returns:
        between [..., C, C] (1 on the diagonal, 0 above), prefix [..., C], suffix [..., C], total [...].
    """
    chunk = decay.shape[-1]
    prefix = decay.unsqueeze(-1)
    suffix = torch.ones_like(prefix)
    between = suffix.unsqueeze(-1)
    total = decay
    block = 1
    while block < chunk:
        prefix_1, prefix_2 = prefix[..., 0::2, :], prefix[..., 1::2, :]
        suffix_1, suffix_2 = suffix[..., 0::2, :], suffix[..., 1::2, :]
        total_1, total_2 = total[..., 0::2], total[..., 1::2]
        cross = prefix_2.unsqueeze(-1) * suffix_1.unsqueeze(-2)
        upper = F.pad(between[..., 0::2, :, :], (0, block))
        between = torch.cat([upper, torch.cat([cross, between[..., 1::2, :, :]], -1)], -2)
        prefix = torch.cat([prefix_1, prefix_2 * total_1.unsqueeze(-1)], -1)
        suffix = torch.cat([suffix_1 * total_2.unsqueeze(-1), suffix_2], -1)
        total = total_1 * total_2
        block *= 2
    return between.squeeze(-3), prefix.squeeze(-2), suffix.squeeze(-2), total.squeeze(-1)
