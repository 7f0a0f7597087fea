"""Next-token cross-entropy that never holds all logits.

The logits of a batch, [B T, V] in fp32, are the largest tensor of a small model with a large vocabulary. This loss
computes them `chunk_size` tokens at a time and takes the gradients with respect to hidden states and head weight in the
same pass (three matrix products, as with full logits, and none recomputed):

    loss = sum_t [ logsumexp(c(W h_t)) - c(W h_t)[y_t] ] / n,     dlogits = (softmax - onehot) c' / n

with c the identity or the soft cap s tanh(x / s), and n the number of targets or `num_items_in_batch`.

A penalty p on each token's largest logit z (RWKV's L2Wrap) adds to the gradients what the mean of p z^2 / 2 over all
tokens would, and leaves the loss's value alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.segments import closed_gradient

IGNORE_INDEX = -100
LARGE_VOCABULARY = 4096
DEFAULT_CHUNK = 1024


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        chunk_size: int,
        softcap: float | None,
        penalty: Tensor | None,
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
                targets = labels[rows].clamp(min=0)[:, None]
                block = hidden[rows].to(low)
                logits = (block @ cast_weight.T).float()
                if softcap is not None:
                    squashed = torch.tanh_(logits.div_(softcap))
                    logits = squashed * softcap
                log_z = torch.logsumexp(logits, dim=-1, keepdim=True)
                total += ((log_z - logits.gather(1, targets)).squeeze(1) * kept).sum()
                if not (needs_hidden or needs_weight):
                    continue
                if penalty is not None:
                    largest, index = logits.max(-1, keepdim=True)
                    largest *= penalty
                grad = logits.sub_(log_z).exp_()
                grad.scatter_add_(1, targets, torch.full_like(log_z, -1.0))
                grad.mul_(kept[:, None])
                if penalty is not None:
                    grad.scatter_add_(1, index, largest)
                if softcap is not None:
                    grad.mul_(1 - squashed.square())
                grad_low = grad.to(low)
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
    @closed_gradient
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        hidden = None if grad_hidden is None else grad_hidden * grad.to(grad_hidden.dtype)
        weight = None if grad_weight is None else grad_weight * grad.to(grad_weight.dtype)
        return hidden, weight, None, None, None, None


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    chunk_size: int = DEFAULT_CHUNK,
    softcap: float | None = None,
    max_logit_penalty: float = 0.0,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of `softcap(hidden @ weight.T)` with the next token, a scalar in fp32.

    Args:
        hidden: [B, T, D]. weight: [V, D]. labels: [B, T] int64, shifted inside; -100 is ignored.
        chunk_size: tokens whose logits are held at once. max_logit_penalty: see above.
        num_items_in_batch: divide the sum by this instead of by the number of targets (gradient accumulation).
        shift_labels: [B, T] already shifted labels, instead of `labels`.
    """
    targets = _targets(labels, shift_labels).reshape(-1).to(hidden.device)
    own_count = (targets != IGNORE_INDEX).sum()
    penalty = max_logit_penalty * own_count / targets.numel() if max_logit_penalty else None
    rows = hidden.reshape(-1, hidden.shape[-1])
    total = _ChunkedCrossEntropy.apply(rows, weight, targets, chunk_size, softcap, penalty)
    count = own_count if num_items_in_batch is None else num_items_in_batch
    return total / (count.to(total.device) if torch.is_tensor(count) else count)


def penalise_max_logits(loss: Tensor, logits: Tensor, penalty: float, share: Tensor | float = 1.0) -> Tensor:
    """The loss, whose gradient now adds that of the mean of `share * penalty * z^2 / 2`, z the tokens' largest logits.

    Args:
        loss: a scalar. logits: [B, T, V]. share: of this call in its optimiser step (`batch_share`).
    """
    return _MaxLogitPenalty.apply(loss, logits, share * penalty / logits[..., 0].numel())


class _MaxLogitPenalty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, logits: Tensor, factor: Tensor | float) -> Tensor:
        largest, index = logits.max(-1, keepdim=True)
        ctx.save_for_backward(largest * factor, index)
        ctx.shape = logits.shape
        return loss.clone()

    @staticmethod
    @closed_gradient
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        pull, index = ctx.saved_tensors
        return grad, pull.new_zeros(ctx.shape).scatter_(-1, index, pull * grad.to(pull.dtype)), None


def _targets(labels: Tensor, shift_labels: Tensor | None) -> Tensor:
    return F.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:] if shift_labels is None else shift_labels


def batch_share(
    labels: Tensor,
    *,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | float:
    """The share of this call in its optimiser step: its targets over `num_items_in_batch`, 1 without that.

    What is added to a loss that is divided so has to be weighted by it, or accumulation would add it several times.
    """
    if num_items_in_batch is None:
        return 1.0
    return (_targets(labels, shift_labels) != IGNORE_INDEX).sum() / num_items_in_batch


def loss_chunk_size(configured: int | None, vocab_size: int) -> int:
    """Tokens per chunk of the training loss: the configured number, or 0 (all logits at once) for small
    vocabularies."""
    if configured is not None:
        return configured
    return DEFAULT_CHUNK if vocab_size >= LARGE_VOCABULARY else 0
