"""The cache of a call is taken under both names that transformers gives it, and refused under any other."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DynamicCache,
)

import hf_arch
from hf_arch.layers.compat import CACHE_ARGUMENT
from hf_arch.models.arguments import CACHE_NAMES, REFUSED_NAMES, EitherName, cache_of
from tests.suite.models import close, perturbed_model, token_ids

CACHED = [AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification]
EVERY = [*CACHED, AutoModelForQuestionAnswering]
NAMES = ["llama", "gla", "mla", "rwkv7", "linformer"]


def built(auto_class, name="llama"):
    return auto_class.from_config(hf_arch.tiny_config(name)).eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("argument", CACHE_NAMES)
@torch.no_grad()
def test_a_cache_counts_under_either_name(name, argument):
    model, ids = perturbed_model(name), token_ids(2, 12)
    cache = DynamicCache(config=model.config)
    parts = [model(part, **{argument: cache}).logits for part in ids.split([7, 1, 4], 1)]
    close(torch.cat(parts, 1), model(ids, use_cache=False).logits)
    assert cache.get_seq_length() == 12


@pytest.mark.parametrize("argument", CACHE_NAMES)
@pytest.mark.parametrize("auto_class", EVERY)
@torch.no_grad()
def test_every_head_fills_the_cache_under_either_name(auto_class, argument):
    model = built(auto_class)
    cache = DynamicCache(config=model.config)
    out = model(token_ids(2, 5), **{argument: cache})
    assert cache.get_seq_length() == 5
    if auto_class in CACHED and CACHE_ARGUMENT in out:
        assert cache_of(out) is cache


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForCausalLM])
@torch.no_grad()
def test_the_output_holds_the_cache_where_this_version_looks_for_it(auto_class):
    out = built(auto_class)(token_ids(2, 5), use_cache=True)
    assert CACHE_ARGUMENT in list(out) and cache_of(out).get_seq_length() == 5


@pytest.mark.parametrize("auto_class", EVERY)
@torch.no_grad()
def test_two_different_caches_are_refused_and_one_told_twice_is_one(auto_class):
    model, ids = built(auto_class), token_ids(1, 3)
    first, second = DynamicCache(config=model.config), DynamicCache(config=model.config)
    with pytest.raises(ValueError, match="past_key_values, cache: two different caches"):
        model(ids, past_key_values=first, cache=second)
    model(ids, past_key_values=first, cache=first)
    assert first.get_seq_length() == 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("argument", CACHE_NAMES)
@torch.no_grad()
def test_who_changes_the_inputs_of_generate_finds_the_cache_under_either_name(name, argument):
    """PEFT's prompts put vectors before the tokens where the cache is empty; they look for it under one name."""
    model, ids = perturbed_model(name), token_ids(2, 5)
    prompt = torch.randn(2, 3, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    own, seen = model.prepare_inputs_for_generation, []

    def with_prompt(*args, **kwargs):
        inputs = own(*args, **kwargs)
        assert argument in inputs and inputs[argument] is inputs.get(argument)
        seen.append(inputs[argument].get_seq_length())
        if not seen[-1]:
            embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
            inputs["inputs_embeds"] = torch.cat((prompt, embeds), 1)
            inputs[argument] = DynamicCache(config=model.config)
            assert set(inputs).isdisjoint({*CACHE_NAMES} - {CACHE_ARGUMENT})
        inputs["position_ids"] = inputs["attention_mask"] = None
        return inputs

    model.prepare_inputs_for_generation = with_prompt
    made = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert seen == [0, 8, 9, 10]
    for _ in range(4):
        embeds = torch.cat((prompt, model.get_input_embeddings()(ids)), 1)
        ids = torch.cat((ids, model(inputs_embeds=embeds, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(made, ids)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_every_way_to_change_the_inputs_of_generate_takes_either_name(name):
    changes = {
        "update": lambda inputs: inputs.update({name: 2}, position_ids=None),
        "update by name": lambda inputs: inputs.update(**{name: 2}),
        "or": lambda inputs: inputs.__ior__({name: 2}),
        "setdefault": lambda inputs: (inputs.pop(name), inputs.setdefault(name, 2)),
        "del": lambda inputs: (inputs.__delitem__(name), inputs.__setitem__(name, 2)),
    }
    for what, change in changes.items():
        inputs = EitherName({name: 1})
        assert inputs.setdefault(name, 3) == 1
        change(inputs)
        assert [key for key in inputs if key in CACHE_NAMES] == [CACHE_ARGUMENT] and inputs[name] == 2, what
    assert list(EitherName({name: 1}) | {name: 2}) == [CACHE_ARGUMENT]
    assert list((EitherName({name: 1}) | {name: 2}).copy()) == [CACHE_ARGUMENT]


@pytest.mark.parametrize("argument", [*REFUSED_NAMES, "anything"])
@pytest.mark.parametrize("auto_class", EVERY)
@torch.no_grad()
def test_a_cache_under_another_name_is_refused(auto_class, argument):
    model = built(auto_class)
    with pytest.raises(ValueError, match=f"^{argument}: .* pass the cache as `{CACHE_ARGUMENT}`$"):
        model(token_ids(1, 3), **{argument: DynamicCache(config=model.config)})
    model(token_ids(1, 3), **{argument: None})


@pytest.mark.parametrize("argument", CACHE_NAMES)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_generate_goes_on_from_a_cache_under_either_name(name, argument):
    model, ids = perturbed_model(name), token_ids(1, 6)
    options = {"do_sample": False, "eos_token_id": None}
    first = model.generate(ids, max_new_tokens=4, return_dict_in_generate=True, **options)
    second = model.generate(first.sequences, max_new_tokens=3, **{argument: cache_of(first)}, **options)
    assert torch.equal(second, model.generate(ids, max_new_tokens=7, use_cache=False, **options))


@torch.no_grad()
def test_masks_for_generate_see_the_cache_under_either_name():
    model = perturbed_model("llama")
    cache = DynamicCache(config=model.config)
    model(token_ids(2, 5), cache=cache)
    embeds, mask = torch.zeros(2, 2, 32), torch.ones(2, 7, dtype=torch.long)
    mask[0, 0] = 0
    for argument in CACHE_NAMES:
        masks = model.create_masks_for_generate(inputs_embeds=embeds, attention_mask=mask, **{argument: cache})
        assert masks["full_attention"].shape[-2:] == (2, 7), argument
    with pytest.raises(ValueError, match="cache_params"):
        model.create_masks_for_generate(inputs_embeds=embeds, cache_params=cache)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_takes_the_cache_away_from_the_layers(name):
    """Run twice, a layer would put its keys into the cache twice, and go on from its own last state."""
    model, ids = perturbed_model(name), token_ids(2, 9)
    model.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        cache = DynamicCache(config=model.config) if checkpointing else None
        model(ids, labels=ids, past_key_values=cache, use_cache=False).loss.backward()
        gradients.append(model.model.embed_tokens.weight.grad.clone())
        if cache is not None:
            assert all(getattr(layer, "keys", None) is None for layer in cache.layers)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("order", [(0,), (0, 1, 1)])
@torch.no_grad()
def test_layers_added_or_cut_after_the_model_was_built_are_refused(order):
    """PEFT's layer_replication does so; the added ones would not run."""
    model = perturbed_model("llama")
    model.model.layers = torch.nn.ModuleList([model.model.layers[index] for index in order])
    for use_cache in (False, True):
        with pytest.raises(ValueError, match=f"model: {len(order)} layers, but it was built with 2") as error:
            model(token_ids(1, 4), use_cache=use_cache)
        assert "\n" not in str(error.value)
