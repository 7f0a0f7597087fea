"""Next-token cross-entropy that never holds all logits.

The logits of a batch, [B T, V] in fp32, are the largest tensor of a small model with a large vocabulary. This loss
computes them `chunk_size` tokens at a time and takes the gradients with respect to hidden states and head weight in the
same pass (three matrix products, as with full logits, and none recomputed):

    loss = sum_t [ logsumexp(c(W h_t)) - c(W h_t)[y_t] ] / n,     dlogits = (softmax - onehot) c' / n

with c the identity or the soft cap s tanh(x / s), and n the number of targets or `num_items_in_batch`.
A head that is more than its weight (adapters, hooks, quantised or sharded weights) is called on the same chunks, once
more in the backward pass.

A penalty p on each target's largest logit z (RWKV's L2Wrap) adds to the gradients what sum_t p z_t^2 / (2 n) would, and
leaves the loss's value alone. It counts targets, as the loss does: a step made of several calls is then that of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..layers.plain_linear import is_plain_linear
from ..ops.compat import functorch_levels
from ..ops.custom_op import manual_backward

OfLogits = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A loss of logits [N, V], targets [N] and weights [N], summed over tokens: a scalar."""
IGNORE_INDEX = -100
LARGE_VOCABULARY = 4096
DEFAULT_CHUNK, LEAST_CHUNK = 1024, 64
CHUNK_LOGITS = 2**24  # 64 MiB in fp32


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The sum over targets, of hidden [N, D], weight [V, D] and labels [N].

    Its gradients are taken in the forward pass, chunk by chunk, while the logits are there; the backward pass scales
    them by the gradient of the sum."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        chunk_size: int,
        softcap: float | None,
        penalty: float,
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        low = (
            torch.get_autocast_dtype(hidden.device.type)
            if torch.is_autocast_enabled(hidden.device.type)
            else hidden.dtype
        )
        cast_weight = weight.to(low)
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], chunk_size):
                rows = slice(start, start + chunk_size)
                kept = labels[rows] != IGNORE_INDEX
                targets = torch.where(kept, labels[rows], 0)[:, None]
                block = hidden[rows].to(low)
                logits = (block @ cast_weight.T).float()
                if softcap is not None:
                    squashed = torch.tanh_(logits.div_(softcap))
                    logits = squashed * softcap
                log_z = torch.logsumexp(logits, dim=-1, keepdim=True)
                total += ((log_z - logits.gather(1, targets)).squeeze(1) * kept).sum()
                if not (needs_hidden or needs_weight):
                    continue
                # dL/dlogits = (softmax - onehot) c', plus p z c' at the largest logit z
                if penalty:
                    largest, index = logits.max(-1, keepdim=True)
                    largest = largest * (penalty * kept[:, None])
                grad = logits.sub_(log_z).exp_()
                grad.scatter_add_(1, targets, torch.full_like(log_z, -1.0))
                grad.mul_(kept[:, None])
                if penalty:
                    grad.scatter_add_(1, index, largest)
                if softcap is not None:
                    grad.mul_(1 - squashed.square())
                grad_low = grad.to(low)
                # dL/dh = dL/dlogits W, dL/dW = dL/dlogits^T h
                if grad_hidden is not None:
                    grad_hidden[rows] = grad_low @ cast_weight
                if grad_weight is not None:
                    if low == torch.float32:
                        grad_weight.addmm_(grad_low.T, block)
                    else:
                        grad_weight += grad_low.T @ block
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    @manual_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        hidden = None if grad_hidden is None else grad_hidden * grad.to(grad_hidden.dtype)
        weight = None if grad_weight is None else grad_weight * grad.to(grad_weight.dtype)
        return hidden, weight, None, None, None, None


def _called_cross_entropy(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor,
    chunk_size: int,
    softcap: float | None,
    penalty: float,
    further: Sequence[OfLogits] = (),
) -> Tensor:
    """The same sum by calls of `head` on [1, C, D], whose logits are computed again in the backward pass; then those of
    `further`: [1 + F]."""

    def part(rows: Tensor, targets: Tensor) -> Tensor:
        logits = head(rows.unsqueeze(0)).squeeze(0)
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        loss = F.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")
        kept = (targets != IGNORE_INDEX).float()
        loss = penalise_max_logits(loss, logits, penalty, kept) if penalty else loss
        return torch.stack([loss, *(of_logits(logits, targets, kept) for of_logits in further)])

    total = torch.zeros(1 + len(further), dtype=torch.float32, device=hidden.device)
    for rows, targets in zip(hidden.split(chunk_size), labels.split(chunk_size), strict=True):
        total = total + (
            checkpoint(part, rows, targets, use_reentrant=False) if torch.is_grad_enabled() else part(rows, targets)
        )
    return total


def chunked_cross_entropy(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor,
    *,
    chunk_size: int = DEFAULT_CHUNK,
    softcap: float | None = None,
    max_logit_penalty: float = 0.0,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels: Tensor | None = None,
    further: Sequence[OfLogits] = (),
) -> Tensor:
    """Cross-entropy of `softcap(head(hidden))` with the next token, a scalar in fp32; with `further`, [1 + F].

    Args:
        hidden: [B, T, D]. head: any module that maps [..., D] to logits [..., V].
        labels: [B, T] int64, shifted inside; -100 is ignored.
        chunk_size: tokens whose logits are held at once. max_logit_penalty: see above.
        num_items_in_batch: divide the sum by this instead of by the number of targets (gradient accumulation).
        shift_labels: [B, T] already shifted labels, instead of `labels`.
        further: other losses of the same logits, divided by the same number.
    """
    targets = shifted_targets(labels, shift_labels).reshape(-1).to(hidden.device)
    rows = hidden.reshape(-1, hidden.shape[-1])
    if further:
        total = _called_cross_entropy(rows, head, targets, chunk_size, softcap, max_logit_penalty, further)
    elif is_plain_linear(head) and head.bias is None:
        total = _ChunkedCrossEntropy.apply(rows, head.weight, targets, chunk_size, softcap, max_logit_penalty)
    else:
        total = _called_cross_entropy(rows, head, targets, chunk_size, softcap, max_logit_penalty).squeeze(0)
    count = (targets != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
    return total / (count.to(total.device) if torch.is_tensor(count) else count)


def penalise_max_logits(loss: Tensor, logits: Tensor, penalty: float, weights: Tensor | None = None) -> Tensor:
    """The loss, whose gradient now adds that of the sum of `penalty * weight * z^2 / 2`, z the tokens' largest logits.

    Args:
        loss: a scalar. logits: [..., V]. weights: [...], of the tokens (`target_weights`); None takes their mean.
    """
    factors = penalty / logits[..., 0].numel() if weights is None else (penalty * weights).unsqueeze(-1)
    return _MaxLogitPenalty.apply(loss, logits, factors)


class _MaxLogitPenalty(torch.autograd.Function):
    """The loss unchanged; dL/dlogits is factor z at the largest logit z of each token."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, logits: Tensor, factor: Tensor | float) -> Tensor:
        largest, index = logits.max(-1, keepdim=True)
        ctx.save_for_backward(largest * factor, index)
        ctx.shape = logits.shape
        return loss.clone()

    @staticmethod
    @manual_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        pull, index = ctx.saved_tensors
        return grad, pull.new_zeros(ctx.shape).scatter_(-1, index, pull * grad.to(pull.dtype)), None


def shifted_targets(labels: Tensor, shift_labels: Tensor | None) -> Tensor:
    """[B, T]: the next token of each, -100 where none counts."""
    return F.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:] if shift_labels is None else shift_labels


def check_targets(targets: Tensor, vocab_size: int) -> None:
    """Raise a ValueError for a target that is no token. Looked at on a CPU alone: a GPU would wait, and stops by itself
    at the product with the head."""
    if targets.device.type != "cpu" or torch.compiler.is_compiling() or functorch_levels() or not targets.numel():
        return
    wrong = ((targets < 0) & (targets != IGNORE_INDEX)) | (targets >= vocab_size)
    if bool(wrong.any()):
        raise ValueError(
            f"labels: {int(targets[wrong][0])} is not allowed; use ids of tokens, 0 to {vocab_size - 1}, and "
            f"{IGNORE_INDEX} where none counts"
        )


def target_weights(
    labels: Tensor,
    *,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """[B, T] fp32: the weight of each token in the loss, 1 / n at targets and 0 elsewhere.

    n is `num_items_in_batch`, or else the number of targets. What is added to the loss has to be weighted by this (or
    by its sum, the share of this call in its optimiser step): otherwise accumulation would add it several times.
    """
    kept = (shifted_targets(labels, shift_labels) != IGNORE_INDEX).float()
    count = kept.sum() if num_items_in_batch is None else num_items_in_batch
    return kept / (count.to(kept.device) if torch.is_tensor(count) else count)


def loss_chunk_size(configured: int | None, vocab_size: int, device: str) -> int:
    """Tokens per chunk of the training loss: the configured number, or 0 (all logits at once) for small vocabularies.

    On a CPU no more than are good for `CHUNK_LOGITS`, since no product is faster for more; a GPU wants larger ones.
    """
    if configured is not None:
        return configured
    if vocab_size < LARGE_VOCABULARY:
        return 0
    return max(LEAST_CHUNK, min(DEFAULT_CHUNK, CHUNK_LOGITS // vocab_size)) if device == "cpu" else DEFAULT_CHUNK
