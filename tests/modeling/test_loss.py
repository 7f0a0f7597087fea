"""The chunked cross-entropy equals the plain one in value and gradient, whatever the chunk, cap, mask and divisor."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.models.loss import chunked_cross_entropy, loss_chunk_size


def _head(weight):
    """A Linear layer of this weight [V, D]."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    linear.weight = nn.Parameter(weight)
    return linear


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
@pytest.mark.parametrize("called", [False, True])
def test_value_and_gradients(chunk_size, softcap, count, called):
    hidden = torch.randn(3, 7, 8, dtype=torch.float64, requires_grad=True)
    head = _head(torch.randn(13, 8, dtype=torch.float64))
    weight = head.weight
    if called:
        head.register_forward_hook(lambda module, args, out: None)
    labels = torch.randint(0, 13, (3, 7))
    labels[0, 2:5] = -100
    expected = _plain(hidden, weight, labels, softcap, count)
    gradients = torch.autograd.grad(expected, (hidden, weight))
    actual = chunked_cross_entropy(
        hidden, head, labels, chunk_size=chunk_size, softcap=softcap, num_items_in_batch=count
    )
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(torch.autograd.grad(actual, (hidden, weight)), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss_chunk_size", [0, 5])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("count", [None, 31])
def test_penalty_of_the_largest_logits_is_a_gradient_alone(loss_chunk_size, softcap, count):
    """It equals the gradient of the targets' sum(z^2) / 2 times the penalty, divided as the loss is."""
    penalty, labels = 0.3, torch.randint(3, 97, (3, 7))
    labels[0, 2:5] = -100
    options = {"final_logit_softcapping": softcap, "loss_chunk_size": loss_chunk_size}
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("llama", **options)).double().train()
    arguments = {"input_ids": labels.clamp(min=3), "labels": labels, "num_items_in_batch": count, "use_cache": False}
    plain = model(**arguments).loss
    logits = model(arguments["input_ids"], use_cache=False).logits
    kept = labels[:, 1:] != -100
    squares = logits.max(-1).values.square()[:, :-1][kept]
    surrogate = plain + 0.5 * penalty * squares.sum() / (kept.sum() if count is None else count)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(surrogate, parameters)
    model.config.max_logit_penalty = penalty
    loss = model(**arguments).loss
    assert loss.item() == plain.item()
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_shifted_labels_are_taken_as_they_are():
    hidden, head, labels = torch.randn(2, 5, 8), _head(torch.randn(11, 8)), torch.randint(0, 11, (2, 5))
    shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
    torch.testing.assert_close(
        chunked_cross_entropy(hidden, head, labels),
        chunked_cross_entropy(hidden, head, labels, shift_labels=shifted),
    )


def test_bfloat16_autocast_keeps_the_sum_in_fp32():
    hidden, head = torch.randn(2, 64, 32, requires_grad=True), _head(torch.randn(50, 32))
    labels = torch.randint(0, 50, (2, 64))
    exact = chunked_cross_entropy(hidden, head, labels)
    with torch.autocast("cpu", torch.bfloat16):
        low = chunked_cross_entropy(hidden, head, labels)
    assert low.dtype == torch.float32
    assert abs(low.item() - exact.item()) < 0.02 * exact.item()
    low.backward()
    assert hidden.grad.dtype == head.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("called", [False, True])
def test_it_holds_no_tensor_of_all_logits(called):
    hidden, head, labels = (
        torch.randn(4, 64, 8, requires_grad=True),
        _head(torch.randn(600, 8)),
        torch.randint(0, 600, (4, 64)),
    )
    if called:
        head.register_forward_hook(lambda module, args, out: None)
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
        chunked_cross_entropy(hidden, head, labels, chunk_size=32).backward()
    assert largest <= 32 * 600


def test_the_default_depends_on_the_vocabulary():
    for device in ("cpu", "cuda"):
        assert loss_chunk_size(None, 500, device) == 0
        assert loss_chunk_size(0, 50_257, device) == 0
        assert loss_chunk_size(7, 50_257, device) == 7
    sizes = (4096, 16_384, 50_257, 10**6)
    assert [loss_chunk_size(None, size, "cpu") for size in sizes] == [1024, 1024, 333, 64]
    assert [loss_chunk_size(None, size, "cuda") for size in sizes] == [1024] * 4
