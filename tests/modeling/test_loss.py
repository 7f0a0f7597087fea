"""The chunked cross-entropy equals the plain one in value and gradient, whatever the chunk, cap, mask and divisor."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.modeling.loss import chunked_cross_entropy, loss_chunk_size


def _plain(hidden, weight, labels, softcap=None, count=None):
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    targets = F.pad(labels, (0, 1), value=-100)[:, 1:].reshape(-1)
    total = F.cross_entropy(logits.flatten(0, 1), targets, reduction="sum")
    return total / ((targets != -100).sum() if count is None else count)


@pytest.mark.parametrize("chunk_size", [1, 5, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("count", [None, 31])
def test_value_and_gradients(chunk_size, softcap, count):
    hidden = torch.randn(3, 7, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(13, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 13, (3, 7))
    labels[0, 2:5] = -100
    expected = _plain(hidden, weight, labels, softcap, count)
    gradients = torch.autograd.grad(expected, (hidden, weight))
    actual = chunked_cross_entropy(
        hidden, weight, labels, chunk_size=chunk_size, softcap=softcap, num_items_in_batch=count
    )
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(torch.autograd.grad(actual, (hidden, weight)), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss_chunk_size", [0, 5])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("count", [None, 31])
def test_penalty_of_the_largest_logits_is_a_gradient_alone(loss_chunk_size, softcap, count):
    """It equals the gradient of mean(z^2) / 2 times the penalty, weighted as the call's share of its step."""
    penalty, labels = 0.3, torch.randint(3, 97, (3, 7))
    labels[0, 2:5] = -100
    options = {"final_logit_softcapping": softcap, "loss_chunk_size": loss_chunk_size}
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("llama", **options)).double().train()
    arguments = {"input_ids": labels.clamp(min=3), "labels": labels, "num_items_in_batch": count, "use_cache": False}
    plain = model(**arguments).loss
    logits = model(arguments["input_ids"], use_cache=False).logits
    share = 1 if count is None else (labels[:, 1:] != -100).sum() / count
    surrogate = plain + 0.5 * penalty * share * logits.max(-1).values.square().mean()
    parameters = list(model.parameters())
    expected = torch.autograd.grad(surrogate, parameters)
    model.config.max_logit_penalty = penalty
    loss = model(**arguments).loss
    assert loss.item() == plain.item()
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_shifted_labels_are_taken_as_they_are():
    hidden, weight, labels = torch.randn(2, 5, 8), torch.randn(11, 8), torch.randint(0, 11, (2, 5))
    shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
    torch.testing.assert_close(
        chunked_cross_entropy(hidden, weight, labels),
        chunked_cross_entropy(hidden, weight, labels, shift_labels=shifted),
    )


def test_bfloat16_autocast_keeps_the_sum_in_fp32():
    hidden, weight = torch.randn(2, 64, 32, requires_grad=True), torch.randn(50, 32, requires_grad=True)
    labels = torch.randint(0, 50, (2, 64))
    exact = chunked_cross_entropy(hidden, weight, labels)
    with torch.autocast("cpu", torch.bfloat16):
        low = chunked_cross_entropy(hidden, weight, labels)
    assert low.dtype == torch.float32
    assert abs(low.item() - exact.item()) < 0.02 * exact.item()
    low.backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_it_holds_no_tensor_of_all_logits():
    hidden, weight, labels = (
        torch.randn(4, 64, 8, requires_grad=True),
        torch.randn(600, 8),
        torch.randint(0, 600, (4, 64)),
    )
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        chunked_cross_entropy(hidden, weight, labels, chunk_size=32).backward()
    assert largest <= 32 * 600


def test_the_default_depends_on_the_vocabulary():
    assert loss_chunk_size(None, 500) == 0
    assert loss_chunk_size(None, 50_257) > 0
    assert loss_chunk_size(0, 50_257) == 0
