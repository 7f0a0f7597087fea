"""generate() over every registered architecture: each decoding strategy with a cache gives what it gives without
one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StaticCache

from tests.suite.models import ARCHITECTURES, close, perturbed_model, token_ids

pytestmark = pytest.mark.parametrize("name", ARCHITECTURES)


def _both(name, **kwargs):
    model, ids = perturbed_model(name), token_ids(2, 6)
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(11)
        outputs.append(model.generate(ids, max_new_tokens=7, eos_token_id=None, use_cache=use_cache, **kwargs))
    return outputs


@pytest.mark.sampled(10)
@pytest.mark.parametrize(
    "kwargs",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
        # Of the model these ask nothing that the two before do not.
        pytest.param({"do_sample": True, "top_k": 20, "temperature": 0.9}, marks=pytest.mark.slow),
        pytest.param({"do_sample": False, "num_beams": 3}, marks=pytest.mark.slow),
        pytest.param({"do_sample": True, "num_return_sequences": 3, "top_p": 0.9}, marks=pytest.mark.slow),
    ],
    ids=["greedy", "beams_returned", "sample", "beams", "sample_returned"],
)
def test_a_cache_changes_no_token(name, kwargs):
    with_cache, without = _both(name, **kwargs)
    assert torch.equal(with_cache, without)


def test_left_padded_batch_equals_singles(name):
    model, ids = perturbed_model(name), token_ids(3, 9)
    padding = [0, 2, 5]
    mask = torch.stack([(torch.arange(9) >= n).long() for n in padding])
    batch = model.generate(
        torch.stack(
            [torch.cat([torch.zeros(n, dtype=torch.long), row[: 9 - n]]) for n, row in zip(padding, ids, strict=True)]
        ),
        attention_mask=mask,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
    )
    for n, row, out in zip(padding, ids, batch, strict=True):
        single = model.generate(row[None, : 9 - n], max_new_tokens=6, do_sample=False, eos_token_id=None)
        assert torch.equal(out[9:], single[0, 9 - n :])


@pytest.mark.sampled(10)
def test_static_cache_gives_the_same_tokens(name):
    model, ids = perturbed_model(name), token_ids(2, 6)
    options = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None, "disable_compile": True}
    static = model.generate(ids, cache_implementation="static", **options)
    assert torch.equal(static, model.generate(ids, **options))


@pytest.mark.sampled(10)
@torch.no_grad()
def test_a_returned_cache_continues(name):
    model, ids = perturbed_model(name), token_ids(1, 6)
    options = {"do_sample": False, "eos_token_id": None}
    first = model.generate(ids, max_new_tokens=4, return_dict_in_generate=True, **options)
    mask = torch.ones_like(first.sequences)  # a pad token that was generated is one of the text
    options["past_key_values"] = first.past_key_values
    second = model.generate(first.sequences, attention_mask=mask, max_new_tokens=3, **options)
    del options["past_key_values"]
    assert torch.equal(second, model.generate(ids, max_new_tokens=7, **options))


@torch.no_grad()
def test_logits_to_keep(name):
    model, ids = perturbed_model(name), token_ids(2, 9)
    close(model(ids, logits_to_keep=2, use_cache=False).logits, model(ids, use_cache=False).logits[:, -2:], 1e-6)


@pytest.mark.sampled(10)
@pytest.mark.parametrize("drafts_by", ["model", "lookup"])
def test_assisted_generation_gives_the_same_tokens_or_is_refused(name, drafts_by):
    """It takes drafted tokens back, which keys and values can and a recurrent state cannot."""
    model, ids = perturbed_model(name), token_ids(1, 6)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    draft = {"assistant_model": perturbed_model(name, 1)} if drafts_by == "model" else {"prompt_lookup_num_tokens": 2}
    if {"full_attention", "sliding_attention"}.issuperset(model.config.layer_types):
        assert torch.equal(model.generate(ids, **draft, **options), model.generate(ids, **options))
        return
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(ids, **draft, **options)
    cache = model(ids, use_cache=True).past_key_values
    # Where keys of a window stand beside the states, transformers refuses before ours does: they are gone as well.
    with pytest.raises(RuntimeError, match=r"take 2 tokens back|does not track past states"):
        cache.crop(-2)


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_a_reset_cache_is_as_good_as_new(name, static, grad):
    model, ids = perturbed_model(name), token_ids(2, 9)
    cache = StaticCache(model.config, max_cache_len=16) if static else DynamicCache(config=model.config)
    with torch.set_grad_enabled(grad):
        first = model(ids, past_key_values=cache).logits
        cache.reset()
        assert torch.equal(model(ids, past_key_values=cache).logits, first)


class _Adapted(nn.Module):
    """A Linear with something beside it, as adapter libraries wrap one: its own weight no longer says what it does."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.beside = nn.Linear(base.in_features, base.out_features, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.beside(x)


@torch.no_grad()
def test_adapters_count_in_steps_as_in_the_whole(name):
    model, ids = perturbed_model(name), token_ids(2, 9)
    torch.manual_seed(0)
    for path, module in list(model.model.named_modules()):
        if type(module) is nn.Linear:
            setattr(model.model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], _Adapted(module))
    whole, cache = model(ids, use_cache=False).logits, DynamicCache(config=model.config)
    steps = [model(token, past_key_values=cache).logits for token in ids.split(1, dim=1)]
    close(torch.cat(steps, 1), whole)
