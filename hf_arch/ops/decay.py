r"""Products of decays between all pairs of positions of a chunk, by halving.

Chunk forms need $\prod_{j < s \le i} d_s$ for every i >= j. Differences of cumulated logarithms lose precision or
overflow for strong decays, and cannot express d = 0. Halving never divides: neighbouring blocks of m steps join by

    between[i, j] = prefix[i] * suffix[j]          i in the second block, j in the first
    prefix'       = [prefix_1, total_1 * prefix_2]      (from the block's first step up to and including i)
    suffix'       = [suffix_1 * total_2, suffix_2]      (after j up to the block's last step)
    total'        = total_1 * total_2

so that only products of numbers in [0, 1] are formed. A decay of exactly 0, the start of a document, is exact as well.
`decay_products` does this for one decay a step. With one a channel, `factorise` multiplies prefixes into q and suffixes
into k, and every pair of neighbouring blocks becomes one matrix product.

Each of these products is linear in either factor, so the gradient walks the levels backwards, with the rule of a
product at each: from x' = x y follow dL/dx = dL/dx' y and dL/dy = sum dL/dx' x.

Legend: C chunk, a power of two; K channels; M chunks of the whole batch; G rows of q or k a step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .custom_op import as_custom_op, manual_backward


class _DecayProducts(torch.autograd.Function):
    """The four products above for scalar decays.

    Args:
        decay: [..., C], each in [0, 1].

    Returns:
        between [..., C, C] (1 on the diagonal, 0 above), prefix [..., C], suffix [..., C], total [...].
    """

    @staticmethod
    def forward(ctx: Any, decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        between, prefix, suffix, _ = _empty_products(decay)
        prefix.copy_(decay)
        suffix.fill_(1.0)
        total = decay.reshape(-1, 1)
        between.zero_().diagonal(dim1=-2, dim2=-1).fill_(1.0)
        flat = between.view(-1, *between.shape[-2:])
        levels: list[Tensor] = []
        rows = 1
        while rows < decay.shape[-1]:
            prefix_2, suffix_1 = prefix.view(-1, 2, rows)[:, 1], suffix.view(-1, 2, rows)[:, 0]
            total_1, total_2 = total[0::2], total[1::2]
            cross = scores_of_level(flat, rows)
            cross.copy_((prefix_2.unsqueeze(-1) * suffix_1.unsqueeze(-2)).view(cross.shape))
            if ctx.needs_input_grad[0]:
                levels += [prefix_2.clone(), suffix_1.clone(), total_1, total_2]
            prefix_2.mul_(total_1)
            suffix_1.mul_(total_2)
            total = total_1 * total_2
            rows *= 2
        ctx.save_for_backward(*levels)
        return between, prefix, suffix, total.reshape(decay.shape[:-1]).clone()

    @staticmethod
    @manual_backward
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        levels = ctx.saved_tensors
        shape = grads[1].shape
        between = grads[0].reshape(-1, *grads[0].shape[-2:])
        prefix, suffix = (grad.clone(memory_format=torch.contiguous_format) for grad in grads[1:3])
        total = grads[3].reshape(-1, 1)
        for at in range(len(levels) - 4, -4, -4):
            prefix_2, suffix_1, total_1, total_2 = levels[at : at + 4]
            rows = prefix_2.shape[-1]
            cross = scores_of_level(between, rows).reshape(-1, rows, rows)
            grad_2, grad_1 = prefix.view(-1, 2, rows)[:, 1], suffix.view(-1, 2, rows)[:, 0]
            # prefix_2' = total_1 prefix_2 and total' = total_1 total_2:
            #     dL/dtotal_1 = sum dL/dprefix_2' prefix_2 + dL/dtotal' total_2; likewise of total_2, by suffix_1'
            of_total_1 = torch.addcmul((grad_2 * prefix_2).sum(-1, keepdim=True), total, total_2)
            of_total_2 = torch.addcmul((grad_1 * suffix_1).sum(-1, keepdim=True), total, total_1)
            total = torch.cat([of_total_1, of_total_2], 1).view(-1, 1)
            # between_ij = prefix_2i suffix_1j:
            #     dL/dprefix_2 = total_1 dL/dprefix_2' + sum_j dL/dbetween_ij suffix_1j; likewise of suffix_1
            grad_2.mul_(total_1).add_((cross * suffix_1.unsqueeze(-2)).sum(-1))
            grad_1.mul_(total_2).add_((cross * prefix_2.unsqueeze(-1)).sum(-2))
        return prefix.add_(total.view(shape))  # blocks of one step: prefix = total = decay, suffix = 1


def _empty_products(decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = decay.shape
    shapes = ((*shape, shape[-1]), shape, shape, shape[:-1])
    between, prefix, suffix, total = (decay.new_empty(shape) for shape in shapes)
    return between, prefix, suffix, total


decay_products = as_custom_op(_DecayProducts, _empty_products)


class Level(NamedTuple):
    """What the backward pass needs of one level of halving; `rows` are G * m."""

    query: Tensor  # of second blocks, [blocks, rows, K]
    key: Tensor  # of first blocks, [blocks, rows, K]
    total_1: Tensor  # [blocks, 1, K]
    total_2: Tensor


def scores_of_level(scores: Tensor, rows: int) -> Tensor:
    """View [M, blocks, rows, rows] of the scores [M, G*C, G*C] between the halves of every block of 2 * rows."""
    count = scores.shape[-1] // (2 * rows)
    blocks = scores.unflatten(-1, (count, 2 * rows)).unflatten(-3, (count, 2 * rows))
    return blocks.diagonal(dim1=-4, dim2=-2)[..., rows:, :rows, :].movedim(-1, -3)


def add_product(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """out += left [blocks, rows, rows] @ right [blocks, rows, K]; blocks of one or two rows are faster unrolled."""
    rows = left.shape[-1]
    if rows > 2:
        return out.add_(left @ right)
    for row in range(rows):
        out.addcmul_(left[..., row : row + 1], right[..., row : row + 1, :])
    return out


def factorise(query: Tensor, key: Tensor, decay: Tensor, levels: list[Level] | None) -> tuple[Tensor, Tensor]:
    """Scores between different steps, and the total decay.

    Args:
        query, key: [M, G*C, K], G rows a step, factors of blocks of one step; they become those of the chunk.
        decay: [M, C, K].
        levels: to be filled for `factorise_backward`, or None.

    Returns:
        scores [M, G*C, G*C], 0 on and above the (block) diagonal, and the total [M, K].
    """
    batch, length, dim = query.shape
    scores = query.new_zeros(batch, length, length)
    total = decay.reshape(-1, 1, dim)
    rows = length // decay.shape[1]
    while rows < length:
        query_2 = query.view(-1, 2, rows, dim)[:, 1]
        key_1 = key.view(-1, 2, rows, dim)[:, 0]
        total_1, total_2 = total[0::2], total[1::2]
        cross = (query_2 * key_1).sum(-1, keepdim=True) if rows == 1 else query_2 @ key_1.transpose(-1, -2)
        scores_of_level(scores, rows).copy_(cross.view(batch, -1, rows, rows))
        if levels is not None:
            levels.append(Level(query_2.clone(), key_1.clone(), total_1, total_2))
        query_2.mul_(total_1)
        key_1.mul_(total_2)
        total = total_1 * total_2
        rows *= 2
    return scores, total.view(batch, dim)


def factorise_backward(levels: list[Level], grad_scores: Tensor, grad_query: Tensor, grad_key: Tensor) -> None:
    """Turns the gradients of the chunk's factors into those of the factors of one step, in place.

    With q the factors of second blocks, k those of first blocks before a level, A its scores q k^T, and q' = total_1 q,
    k' = total_2 k after it: dL/dq = total_1 dL/dq' + dL/dA k and dL/dk = total_2 dL/dk' + dL/dA^T q.
    """
    for level in reversed(levels):
        rows, dim = level.query.shape[1:]
        cross = scores_of_level(grad_scores, rows).reshape(-1, rows, rows)
        add_product(grad_query.view(-1, 2, rows, dim)[:, 1].mul_(level.total_1), cross, level.key)
        add_product(grad_key.view(-1, 2, rows, dim)[:, 0].mul_(level.total_2), cross.mT, level.query)


def suffix_sums(x: Tensor, first: int = 0) -> Tensor:
    """Sums over the steps t + first, t + first + 1, ... of a chunk: [..., C, K] as one small matrix product."""
    return x.new_ones(x.shape[-2], x.shape[-2]).triu(first) @ x
