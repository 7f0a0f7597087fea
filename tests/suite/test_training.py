"""What training needs of every registered architecture: exact gradients under checkpointing and accumulation,
learning, low precision."""

from __future__ import annotations

import pytest
import torch

from hf_arch.models.late_logits import LateLogits
from tests.suite.models import ARCHITECTURES, close, perturbed_model, token_ids

pytestmark = pytest.mark.parametrize("name", ARCHITECTURES)


def _gradients(model, batches, **kwargs):
    model.zero_grad()
    for ids in batches:
        model(ids, labels=ids, use_cache=False, **kwargs).loss.backward()
    return {key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None}


def _same_gradients(actual, expected, tolerance=1e-5):
    assert actual.keys() == expected.keys()
    # A gradient that is zero by symmetry (a key bias under softmax) holds nothing but rounding errors of the others.
    noise = 0.1 * max(gradient.abs().max() for gradient in expected.values())
    for key, gradient in expected.items():
        scale = gradient.abs().max().clamp(min=noise)
        torch.testing.assert_close(actual[key] / scale, gradient / scale, rtol=0, atol=tolerance, msg=key)


def _without_dropout(name):
    return perturbed_model(name, embedding_dropout=0.0, residual_dropout=0.0, attention_dropout=0.0).train()


def test_every_parameter_gets_a_finite_gradient(name):
    model = _without_dropout(name)
    gradients = _gradients(model, [token_ids(2, 40)])
    missing = {key for key, parameter in model.named_parameters() if parameter.requires_grad} - gradients.keys()
    assert not missing
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.sampled(10)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(name, use_reentrant):
    model, ids = _without_dropout(name), token_ids()
    plain = _gradients(model, [ids])
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    _same_gradients(_gradients(model, [ids]), plain)


@pytest.mark.sampled(10)
def test_accumulation_equals_one_batch(name):
    """Eight batches of one row give the gradients of one batch of eight, tokens weighted by num_items_in_batch."""
    model, ids = _without_dropout(name), token_ids(8, 13)
    if any(ffn.routed for ffn, _ in model.config.ffn_specs):
        model.config.router_aux_loss_coef = 0.0  # a product of means over a batch, by definition
    count = torch.tensor(8 * 12)
    whole = _gradients(model, [ids], num_items_in_batch=count)
    _same_gradients(_gradients(model, ids.split(1), num_items_in_batch=count), whole, 1e-4)


@pytest.mark.sampled(10)
def test_chunked_loss_equals_full_logits(name):
    model, ids = _without_dropout(name), token_ids(2, 15)
    model.config.loss_chunk_size = 0
    full_loss = model(ids, labels=ids, use_cache=False).loss
    full = _gradients(model, [ids])
    model.config.loss_chunk_size = 4
    chunked = model(ids, labels=ids, use_cache=False)
    assert isinstance(vars(chunked)["logits"], LateLogits)
    close(chunked.loss, full_loss, 1e-6)
    _same_gradients(_gradients(model, [ids]), full)


@pytest.mark.sampled(10)
def test_loss_falls_on_a_learnable_task(name):
    """Repeating a period of four tokens: the loss must fall below half within sixty steps, and stay there for three."""
    torch.manual_seed(0)
    model = perturbed_model(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    ids = torch.tensor([5, 17, 60, 42] * 8)[None].repeat(4, 1)
    losses = []
    for _ in range(60):
        loss = model(ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if max(losses[-3:]) < 0.5 * losses[0]:
            return
    raise AssertionError(f"from {losses[0]} to {losses[-1]}")


def test_bfloat16_autocast_is_finite_and_near(name):
    model, ids = _without_dropout(name), token_ids(2, 40)
    exact = model(ids, labels=ids, use_cache=False).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert abs(loss.item() - exact.item()) < 0.05 * exact.item()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_bfloat16_weights_run(name):
    model, ids = perturbed_model(name).to(torch.bfloat16), token_ids(2, 12)
    with torch.no_grad():
        assert model(ids, use_cache=False).logits.isfinite().all()
        assert model.generate(ids, max_new_tokens=3, eos_token_id=None).shape == (2, 15)


@pytest.mark.sampled(10)
def test_gradients_in_double_precision(name):
    """Along a random direction of all parameters: nothing on the way falls back to fp32, and nothing is left out.

    The difference quotient is extrapolated from two steps (Richardson): where the loss bends sharply along the
    direction, the quotient of one step is off by more than rounding, by the square of the step.
    """
    model, ids = _without_dropout(name).double(), token_ids(2, 40)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    directions = [torch.randn_like(parameter) for parameter in parameters]

    def loss() -> torch.Tensor:  # the model's own is fp32
        logits = model(ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    @torch.no_grad()
    def quotient(step: float) -> torch.Tensor:
        torch._foreach_add_(parameters, directions, alpha=step)
        above = loss()
        torch._foreach_add_(parameters, directions, alpha=-2 * step)
        below = loss()
        torch._foreach_add_(parameters, directions, alpha=step)
        return (above - below) / (2 * step)

    slope = sum((g * d).sum() for g, d in zip(torch.autograd.grad(loss(), parameters), directions, strict=True))
    torch.testing.assert_close((4 * quotient(5e-7) - quotient(1e-6)) / 3, slope, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # compiling takes minutes on a busy machine
def test_compiled_equals_eager(name):
    torch._dynamo.reset()
    model, ids = _without_dropout(name), token_ids(2, 72)
    eager = _gradients(model, [ids])
    model.forward = torch.compile(model.forward)
    _same_gradients(_gradients(model, [ids]), eager, 1e-4)
