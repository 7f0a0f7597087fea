"""What no configuration tells of a model is measured, and measuring leaves it as it was."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.analysis.audits.unseen import SETTLED, TRAINS_MORE, UNDERSTATED
from hf_arch.analysis.audits.weights import OVERSTATED
from hf_arch.core.plugin_source import PLUGIN_MODULE
from hf_arch.layers.cost import MixerCost
from hf_arch.training.counted_products import counted_products
from hf_arch.training.hidden_state import clocks_set, hidden_state
from hf_arch.training.plugin_globals import PluginGlobals
from hf_arch.training.unseen_parts import UnseenParts
from tests.suite.models import ONE_OF_EACH_KIND

ROW = torch.arange(3, 35)[None]
EVERY = [
    pytest.param(name, marks=[] if name in ONE_OF_EACH_KIND else pytest.mark.slow)
    for name in hf_arch.list_architectures()
]


def model_of(name: str = "llama") -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(hf_arch.tiny_config(name))


def measured(model: Any, step: Callable[[], None] = lambda: None) -> dict[str, Any]:
    parts = UnseenParts(model)
    step()
    return parts.facts(model, ROW)


@pytest.mark.parametrize("name", ["llama", "mamba", "moe"])
def test_an_honest_model_has_none_of_it(name: str) -> None:
    model = model_of(name).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    parts = UnseenParts(model)
    model(input_ids=ROW, labels=ROW).loss.backward()
    random = torch.get_rng_state()
    facts = parts.facts(model, ROW)
    assert facts["untracked"] == facts["gradient_hooks"] == 0 and list(facts["dtypes"]) == ["float32"]
    assert facts["noise"] == 0.0 and facts["mode_gap"] < 1e-5 and 0.3 < facts["products"] < 3
    assert model.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_numbers_that_learn_and_are_no_parameters_are_counted() -> None:
    model = model_of()
    layer = model.model.layers[0]
    layer.register_buffer("memory", torch.zeros(8, 8))
    layer.held, layer.constant = torch.zeros(5), torch.ones(7)
    layer.hidden = [nn.Linear(4, 4, bias=False)]

    def learn() -> None:
        layer.memory += 1
        layer.held += 1
        layer.hidden[0].weight.data += 1
        layer.cache = torch.ones(9)

    assert measured(model, learn)["untracked"] == 64 + 5 + 16


def test_hooks_and_types_are_seen() -> None:
    model = model_of()
    layer = model.model.layers[0]
    size = sum(parameter.numel() for parameter in layer.parameters())
    layer.register_full_backward_hook(lambda *_: None)
    embedding = model.get_input_embeddings().weight
    embedding.register_hook(lambda gradient: gradient)
    facts = measured(model)
    assert facts["gradient_hooks"] == size + embedding.numel()
    assert set(measured(model_of().to(torch.bfloat16))["dtypes"]) == {"bfloat16"}


@pytest.mark.parametrize(("noisy", "fact"), [(True, "noise"), (False, "mode_gap")])
def test_training_mode_is_compared_with_itself_and_with_evaluation(noisy: bool, fact: str) -> None:
    model = model_of()

    def change(module: nn.Module, _: Any, out: Tensor) -> Tensor:
        if noisy and module.training:
            return out * torch.empty_like(out).bernoulli_(0.5)
        return out if module.training else 0.5 * out

    model.get_output_embeddings().register_forward_hook(change)
    facts = measured(model)
    assert facts[fact] > 0.1 and (noisy or facts["noise"] == 0.0)


def test_parameters_that_are_frozen_or_tied_on_the_way_are_given_up() -> None:
    model = model_of()
    layer = model.model.layers[0].ffn

    def give_up() -> None:
        layer.up_proj.weight.requires_grad_(False)
        layer.gate_proj = layer.up_proj

    assert measured(model)["given_up"] == 0
    assert measured(model, give_up)["given_up"] == 2 * layer.up_proj.weight.numel()


@pytest.mark.rest
def test_products_in_half_precision_are_counted_by_mode() -> None:
    model = model_of()
    layer = model.model.layers[0].ffn.up_proj

    def halve(module: nn.Module, given: Any, out: Tensor) -> Tensor:
        return out if module.training else nn.functional.linear(given[0].bfloat16(), module.weight.bfloat16()).float()

    assert measured(model)["product_types"] == {mode: {"float32": 1.0} for mode in ("training", "scoring")}
    layer.register_forward_hook(halve)
    found = measured(model)["product_types"]
    assert set(found["training"]) == {"float32"} and 0.01 < found["scoring"]["bfloat16"] < 0.5


def test_statistics_of_a_batch_settle_and_another_model_does_not() -> None:
    found = {}
    for what in ("statistics", "another"):
        model = model_of()
        norm = nn.BatchNorm1d(model.config.vocab_size, affine=False)
        model.get_output_embeddings().register_module("statistics", norm)

        def change(module: nn.Module, _: Any, out: Tensor, what: str = what) -> Tensor:
            if what == "another":
                return out if module.training else 0.5 * out
            return module.statistics(out.transpose(1, 2)).transpose(1, 2)

        model.get_output_embeddings().register_forward_hook(change)
        facts = measured(model)
        assert facts["mode_gap"] > 0.1 and facts["noise"] == 0.0
        found[what] = facts["settled_gap"] / facts["mode_gap"]
    assert found["statistics"] < SETTLED < found["another"]


def test_passes_that_are_averaged_in_the_score_and_a_cost_that_says_more_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of()

    def again(module: nn.Module, given: Any, out: Any) -> Any:
        return out if module.training else (out + nn.functional.linear(given[0], module.weight)) / 2

    for layer in model.model.layers:
        for projection in (layer.ffn.gate_proj, layer.ffn.up_proj, layer.ffn.down_proj):
            projection.register_forward_hook(again)
    assert (counted_products(model, ROW)["scoring_products"] or 0.0) > 1.2
    model = model_of()
    more = MixerCost(mixing_flops=2 * hf_arch.cost(model.config, ROW.shape[1]).flops_per_token_forward * ROW.shape[1])
    monkeypatch.setattr(type(model.model.layers[0].ffn), "cost", lambda *_: more)
    assert (counted_products(model, ROW)["most_work"] or 1.0) < 0.8


def test_a_part_that_refuses_the_counters_loses_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise TypeError("no implementation found\nand more")

    monkeypatch.setattr("hf_arch.training.counted_products.FlopCounterMode", refuse)
    facts = measured(model_of())
    assert facts["uncountable"] == "TypeError: no implementation found" and "products" not in facts
    with pytest.raises(TypeError):
        UnseenParts(model := model_of(), of_plugins=False).facts(model, ROW)


def test_what_training_leaves_as_it_began_is_counted_but_for_one_factor() -> None:
    model = model_of()
    layer = model.model.layers[0]
    layer.dead = nn.Linear(8, 4, bias=False)

    def step() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)
            layer.dead.weight.copy_(dead * 0.9)

    dead = layer.dead.weight.detach().clone()
    assert measured(model, step)["unmoved"] == 32


def test_gradients_that_a_forward_pass_leaves_are_counted() -> None:
    model = model_of()
    head = model.get_output_embeddings()

    def own(module: nn.Module, given: Any, out: Tensor) -> None:
        if module.training and torch.is_grad_enabled():
            nn.functional.linear(given[0].detach(), module.weight).square().mean().backward()

    head.register_forward_hook(own)
    assert measured(model)["forward_gradients"] == head.weight.numel()


def test_looking_does_not_move_an_average_before_it_is_compared() -> None:
    """An average that follows the weights in each pass in training mode, and is scored in their place."""
    model = model_of()
    head = model.get_output_embeddings()
    held = {"mean": torch.zeros_like(head.weight)}

    def average(module: nn.Module, given: Any, out: Tensor) -> Tensor:
        if not module.training:
            return given[0] @ held["mean"].T
        held["mean"].lerp_(module.weight.detach(), 0.5)
        return out

    head.register_forward_hook(average)
    assert measured(model)["mode_gap"] > 0.1


def test_a_matrix_that_is_loaded_begins_alike_under_every_seed() -> None:
    found = []
    for seed in (1, 2):
        model = model_of()
        torch.manual_seed(seed)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        model.get_input_embeddings().weight.data.copy_(torch.arange(97.0)[:, None].expand(97, 32))
        found.append(UnseenParts(model).starts)
    first, second = found
    same = [place for place in first if first[place] == second[place]]
    assert same == ["model.embed_tokens.weight"] and len(first) > 3 and any("*" in place for place in first)


def test_what_is_made_on_the_way_and_learns_is_counted() -> None:
    """Not a cache, which stays as it is, nor what the model keeps of the row that it read last."""
    model = model_of()
    layer = model.model.layers[0]
    layer.register_forward_hook(lambda module, given, out: setattr(module, "seen", given[0].detach().clone()))
    parts = UnseenParts(model)
    model(input_ids=ROW)
    layer.memory, layer.table = torch.zeros(6), torch.ones(7)
    parts.look_again(model)
    layer.memory += 1
    model(input_ids=ROW + 1)
    assert parts.facts(model, ROW)["untracked"] == 6


def test_parameters_that_are_made_in_the_first_forward_are_uncounted() -> None:
    model = model_of()
    parts = UnseenParts(model)
    assert parts.facts(model, ROW)["uncounted"] == 0
    model.model.layers[0].late = nn.Parameter(torch.zeros(11))
    assert parts.facts(model, ROW)["uncounted"] == 11


@pytest.mark.parametrize("name", EVERY)
def test_the_cost_of_every_architecture_is_what_its_cheapest_form_takes(name: str) -> None:
    model = model_of(name)
    before = model.config._attn_implementation, model.config._experts_implementation
    facts = counted_products(model, ROW)
    assert facts["least_products"] is not None and facts["least_products"] < UNDERSTATED, facts
    assert facts["training_products"] is not None and facts["training_products"] < TRAINS_MORE, facts
    assert facts["scoring_products"] == pytest.approx(1.0, abs=0.01)
    assert facts["most_work"] is not None and facts["most_work"] > 1 / OVERSTATED, facts
    assert before == (model.config._attn_implementation, model.config._experts_implementation)


@pytest.mark.parametrize("name", ["llama", "gated_delta_net", "moe"])
@pytest.mark.parametrize("in_training", [False, True], ids=["always", "in training"])
def test_products_that_no_cost_says_are_counted(name: str, in_training: bool) -> None:
    """As many again as the model has, beside attention, a recurrence in chunks, or experts."""
    model = model_of(name)
    size, layers = model.config.hidden_size, model.model.layers
    width = int(hf_arch.cost(model.config, ROW.shape[1]).flops_per_token_forward / (2 * 2 * size * len(layers)))

    def more(module: nn.Module, given: Any, out: Any) -> Any:
        if module.training or not in_training:
            x = given[0]
            return out + 0 * (x @ x.new_ones(size, width)) @ x.new_ones(width, size)
        return out

    for layer in layers:
        layer.ffn_norm.register_forward_hook(more)
    facts = counted_products(model, ROW)
    fact = facts["training_products" if in_training else "least_products"]
    assert fact is not None and fact > 1.3, facts


@pytest.mark.parametrize("name", EVERY)
def test_what_every_architecture_computes_is_in_its_weights(name: str) -> None:
    model = model_of(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    facts = measured(model)
    assert facts["reloaded"] < 1e-4 and facts["counts"] == facts["clock"] == 0.0, facts
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def counted(module: Any) -> float:
    module.passes += 1
    return 1.0 if module.passes > 30 else 0.5


def counted_in_a_buffer(module: Any) -> float:
    return 1.0 if int(module.count) > 3 else 0.5


def by_a_name(module: Any) -> float:
    return 1.0 if datetime.datetime.now() > datetime.datetime.fromtimestamp(module.begun) else 0.5


@pytest.mark.parametrize(
    ("fact", "factor"),
    [
        ("reloaded", counted),
        ("counts", counted_in_a_buffer),
        ("clock", lambda module: 1.0 if time.time() > module.begun else 0.5),
        ("clock", by_a_name),
    ],
)
@pytest.mark.parametrize("in_training", [False, True], ids=["always", "in training"])
def test_what_a_model_computes_besides_its_weights_is_seen(fact: str, factor: Any, in_training: bool) -> None:
    begun = time.time()

    class Other(type(model_of())):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.begun = begun - 86_400
            self.register_buffer("count", torch.tensor(0))
            if factor is counted:
                self.passes = 0

        def forward(self, *args: Any, **given: Any) -> Any:
            out = super().forward(*args, **given)
            if self.training or not in_training:
                out.logits = out.logits * factor(self)
            return out

    model = Other(hf_arch.tiny_config("llama"))
    begun_with = PluginGlobals(model)
    if factor is counted:
        model.passes = 100
    model.count += 10
    found = hidden_state(model, ROW, begun_with)
    assert (found[fact] or 0.0) > 0.1, found
    assert all(value in (0.0, None) for other, value in found.items() if other != fact), found


@pytest.mark.parametrize("where", ["module", "class"])
def test_what_a_plugin_keeps_for_all_models_is_in_no_weights(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process has none of it, and a new model of this one has."""
    plugin: Any = ModuleType(f"{PLUGIN_MODULE}keeps")
    plugin.Part = type("Part", (), {"__module__": plugin.__name__, "seen": {}})
    plugin.seen, plugin.limit = {}, 4
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)

    class Other(type(model_of())):  # type: ignore[misc]
        def forward(self, *args: Any, **given: Any) -> Any:
            out = super().forward(*args, **given)
            seen = plugin.seen if where == "module" else plugin.Part.seen
            out.logits = out.logits * (0.5 if len(seen) > plugin.limit else 1.0)
            return out

    model = Other(hf_arch.tiny_config("llama"))
    began = PluginGlobals(model)
    assert hidden_state(model, ROW, began)["reloaded"] == 0.0
    seen = plugin.seen if where == "module" else plugin.Part.seen
    seen.update(dict.fromkeys(range(9)))
    assert (hidden_state(model, ROW, began)["reloaded"] or 0.0) > 0.1
    assert len(seen) == 9 and seen is (plugin.seen if where == "module" else plugin.Part.seen)


class Changed(torch.autograd.Function):
    """The identity, whose gradient is `how` of what flows back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.how = how
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.how(grads[0]), None


@pytest.mark.parametrize(
    ("how", "low", "high"),
    [
        (lambda grad: 10 * grad, 0.05, 0.3),
        (lambda grad: -grad, -2.0, -0.5),
        (lambda grad: grad.clamp(-1e-5, 1e-5), 3.0, 1e6),
    ],
    ids=["times ten", "turned round", "clipped"],
)
def test_gradients_that_are_not_those_of_the_loss_are_seen(how: Any, low: float, high: float) -> None:
    model = model_of()
    for layer in model.model.layers:
        layer.ffn.register_forward_hook(lambda module, given, out: Changed.apply(out, how))
    found = measured(model)["gradients"]
    of_ffn = {place: values for place, values in found.items() if ".ffn." in place}
    assert of_ffn and all(low < ratio < high for ratio, _ in of_ffn.values()), found


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", hf_arch.list_architectures())
def test_gradients_of_every_architecture_are_those_of_the_loss(name: str) -> None:
    """As far as a claim would be confounded: a few parameters of a layer may be far off where an operation jumps."""
    model = model_of(name)
    facts = measured(model)
    wrong = sum(count for ratio, count in facts["gradients"].values() if not 1 / 3 < ratio < 3)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert wrong <= 0.01 * total and facts["uncounted"] == facts["untracked"] == facts["forward_gradients"] == 0, facts
    assert facts["settled_gap"] is None or facts["settled_gap"] < 1e-3, facts
    assert facts["held_state"] == 1.0, facts


def test_clocks_are_set_for_the_thread_that_asks_alone() -> None:
    """A tracker's thread that waits by the clock would see ten million seconds pass."""
    day, before = datetime.datetime.now, time.time()
    with ThreadPoolExecutor(1) as other, clocks_set(1e7):
        assert other.submit(lambda: time.time()).result() - before < 1e6
        assert other.submit(lambda: datetime.datetime.now()).result() - day() < datetime.timedelta(days=1)
        assert time.time() - before >= 1e7
        assert datetime.datetime.now() - day() > datetime.timedelta(days=100)
    assert time.time() - before < 1e6
