"""No weight is read behind a module's back: whatever is put around a Linear layer takes part, for every architecture.

Each Linear of a model becomes one that adds a low-rank delta, as an adapter does. Outputs, losses and gradients have to
be those of the model whose weights have the delta merged.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hf_arch.core.registry import EMBEDDINGS, POSITIONS
from hf_arch.layers.ffns.ffn import FeedForward
from hf_arch.layers.mixers.base import Mixer
from hf_arch.layers.norms import ArchRMSNorm
from hf_arch.models.late_logits import LateLogits

from .models import ARCHITECTURES, close, perturbed_model, token_ids

LOSS_CHUNK = 4


class Adapted(nn.Module):
    """base(x) + B A x, the form of LoRA."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        generator = torch.Generator().manual_seed(base.in_features + 7 * base.out_features)
        self.down = nn.Parameter(0.2 * torch.randn(2, base.in_features, generator=generator))
        self.up = nn.Parameter(0.2 * torch.randn(base.out_features, 2, generator=generator))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T

    def merge(self):
        with torch.no_grad():
            self.base.weight += self.up @ self.down
        return self.base


class Delta(nn.Module):
    """The same as a parametrisation of the weight."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        adapted = Adapted(base)
        self.down, self.up = adapted.down, adapted.up

    def forward(self, weight):
        return weight + self.up @ self.down


def wrapped(model):
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Adapted(module))
    return model


def parametrised(model):
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            nn.utils.parametrize.register_parametrization(module, "weight", Delta(module))
    return model


def hooked(model):
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            adapted = Adapted(module)
            module.delta_down, module.delta_up = adapted.down, adapted.up
            module.register_forward_hook(lambda layer, args, out: out + args[0] @ layer.delta_down.T @ layer.delta_up.T)
    return model


def merged(model):
    model = wrapped(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, Adapted):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.merge())
    return model


@pytest.fixture(params=ARCHITECTURES, scope="module")
def name(request):
    return request.param


def _model(name):
    model = perturbed_model(name, tie_word_embeddings=False)
    model.config.loss_chunk_size = LOSS_CHUNK
    return model


def _without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.config.attention_dropout = 0.0
    return model.train()


@pytest.mark.sampled(10)
@pytest.mark.parametrize("put_around", [wrapped, parametrised, hooked])
def test_evaluation_and_cached_steps(name, put_around):
    ids = token_ids(2, 13)
    expected = merged(_model(name))
    actual = put_around(_model(name))
    with torch.no_grad():
        whole = expected(ids, use_cache=False).logits
        close(actual(ids, use_cache=False).logits, whole)
        out = actual(ids[:, :9], use_cache=True)
        for step in range(9, 13):
            out = actual(ids[:, step : step + 1], past_key_values=out.past_key_values, use_cache=True)
            close(out.logits[:, 0], whole[:, step])


@pytest.mark.sampled(10)
@pytest.mark.parametrize("put_around", [wrapped, parametrised, hooked])
def test_training_with_the_chunked_loss(name, put_around):
    """The same loss, and in every delta the gradient that follows from the merged weight's."""
    ids = token_ids(2, 11)
    expected, actual = _without_dropout(merged(_model(name))), _without_dropout(put_around(_model(name)))
    losses = []
    for model in (expected, actual):
        out = model(ids, labels=ids, use_cache=False)
        assert isinstance(vars(out)["logits"], LateLogits)
        out.loss.backward()
        losses.append(out.loss)
    close(losses[1], losses[0], 1e-5)
    adapted = [p for n, p in actual.named_parameters() if n.split(".")[-1] in ("down", "up", "delta_down", "delta_up")]
    assert adapted and all(p.grad is not None for p in adapted)
    if put_around is wrapped:
        for path, module in actual.named_modules():
            if isinstance(module, Adapted):
                grad = expected.get_submodule(path).weight.grad
                close(module.up.grad, grad @ module.down.T)
                close(module.down.grad, module.up.T @ grad)


class Around(nn.Module):
    """A layer inside another one, of which nothing is known but that it can be called."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ARCHITECTURES),
        *(("llama", {"embeddings": each}) for each in EMBEDDINGS if "hf_arch." in EMBEDDINGS[each].__module__),
        *(("llama", {"position": each}) for each in POSITIONS if "hf_arch." in POSITIONS[each].__module__),
        ("llama", {"stream": {"type": "unet", "skip": "gate"}}),
        ("llama", {"norm_position": "sandwich"}),
        ("llama", {"mixer": {"type": "parallel", "branches": [{"type": "attention"}, {"type": "gla"}]}}),
    ],
)
def test_a_layer_is_asked_for_nothing_but_its_result(name, options):
    """Mixers, feed-forwards, projections, embeddings and norms in wrappers without attributes, as some adapters are."""
    model, ids = perturbed_model(name, **options), token_ids(2, 11)
    expected, loss = model(ids, use_cache=False).logits, _without_dropout(model)(ids, labels=ids).loss
    kinds = (nn.Linear, nn.Embedding, ArchRMSNorm, nn.LayerNorm, Mixer, FeedForward)
    for path, module in reversed(list(model.named_modules())):
        if path and isinstance(module, kinds):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, Around(module))
    close(model(ids, labels=ids).loss, loss)
    close(model.eval()(ids, use_cache=False).logits, expected)


@pytest.mark.rest
def test_a_compiled_training_step_with_an_adapted_head():
    ids = token_ids(2, 11)
    expected, actual = _without_dropout(merged(_model("llama"))), _without_dropout(wrapped(_model("llama")))
    compiled = torch.compile(actual, backend="aot_eager")
    close(compiled(ids, labels=ids, use_cache=False).loss, expected(ids, labels=ids, use_cache=False).loss, 1e-5)


def test_tied_embeddings_stay_tied_through_an_adapted_head():
    ids = token_ids(2, 11)
    models = [perturbed_model("llama", tie_word_embeddings=True) for _ in range(2)]
    for model in models:
        model.config.loss_chunk_size = LOSS_CHUNK
        _without_dropout(model)
    models[1].lm_head.register_forward_hook(lambda module, args, out: None)
    for model in models:
        model(ids, labels=ids, use_cache=False).loss.backward()
    close(models[1].model.embed_tokens.weight.grad, models[0].model.embed_tokens.weight.grad)


def test_the_plain_head_keeps_the_closed_form():
    """A hook makes the difference, and nothing but the way is different."""
    ids = token_ids(2, 11)
    plain = _without_dropout(_model("llama"))
    called = copy.deepcopy(plain)
    seen = []
    called.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    results = [model(ids, labels=ids, use_cache=False).loss for model in (plain, called)]
    close(results[1], results[0], 1e-6)
    assert seen and max(shape[-2] for shape in seen) <= LOSS_CHUNK
