"""The layer contract: what a layer needs is published before it, and what it expects comes in its context."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.core.options import Options, options
from hf_arch.core.registry import MIXERS
from hf_arch.layers.contract import EMPTY_CONTEXT, LayerContext, LayerOutput
from hf_arch.layers.layout import SequenceLayout
from hf_arch.layers.mixers.base import Mixer, MixerCost, RecurrentMixer


@options
class RelayOptions(Options):
    """`role`: what the layer does with the value "mean"."""

    role: str = "publish"


@MIXERS.register("relay_of_a_test")
class Relay(RecurrentMixer):
    """Publishes its input, or adds what was published; without a memory of its own."""

    Options = RelayOptions

    @classmethod
    def publishes(cls, config: Any, options: RelayOptions, layer_idx: int) -> tuple[str, ...]:
        return ("mean",) if options.role == "publish" else ()

    @classmethod
    def needs(cls, config: Any, options: RelayOptions, layer_idx: int) -> tuple[str, ...]:
        return ("mean",) if options.role == "need" else ()

    def mix(self, x: Tensor, layout: SequenceLayout, state: Any, context: LayerContext) -> Tensor | LayerOutput:
        if self.options.role == "publish":
            return LayerOutput(x, {"mean": x * 2})
        return x + context.values["mean"]

    def cost(self, seq_len: int) -> MixerCost:
        return MixerCost()


def relay(*roles: str) -> Any:
    pattern = [{"type": "relay_of_a_test", "role": role} for role in roles]
    return hf_arch.tiny_config("mixed", mixer=pattern, num_hidden_layers=len(roles), position="none")


def test_a_published_value_reaches_every_later_layer_that_needs_it():
    seen: list[float] = []
    model = AutoModelForCausalLM.from_config(relay("publish", "need", "need")).eval()
    for layer in model.model.layers[1:]:
        layer.mixer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["context"].values["mean"].sum().item()), with_kwargs=True
        )
    with torch.no_grad():
        model(torch.arange(6)[None])
    assert len(seen) == 2 and seen[0] == seen[1] != 0


def test_padding_in_the_middle_does_not_move_published_values():
    model = AutoModelForCausalLM.from_config(relay("publish", "need")).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    mask = torch.tensor([[1, 1, 0, 1, 1]])
    with torch.no_grad():
        whole = model(ids[:, mask[0].bool()]).logits
        padded = model(ids, attention_mask=mask).logits[:, mask[0].bool()]
    torch.testing.assert_close(padded, whole)


def test_gradients_flow_through_published_values_under_both_kinds_of_checkpointing():
    config = relay("publish", "need")
    ids = torch.arange(6)[None]
    wanted = None
    for kind in (None, False, True):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).train()
        if kind is not None:
            model.activation_checkpointing_enable({"use_reentrant": kind})
            model.enable_input_require_grads()
        model(ids, labels=ids).loss.backward()
        gradient = model.model.layers[0].mixer_norm.weight.grad
        wanted = gradient if wanted is None else wanted
        torch.testing.assert_close(gradient, wanted)


def test_a_value_that_nobody_publishes_is_refused_when_the_config_is_made():
    for mixers in (["gla", "kv_builder", "attention"], ["gla", "kv_builder", "kv_builder", "cross_attention"]):
        with pytest.raises(
            ConfigError, match=r"layer 1 \(KVBuilder\) would have no effect, since no later layer reads"
        ):
            hf_arch.tiny_config("mixed", mixer=mixers, num_hidden_layers=len(mixers))
    with pytest.raises(ConfigError, match=r"layer 0 \(Relay\) needs 'mean', which no earlier layer publishes"):
        relay("need", "publish")


@pytest.mark.parametrize("argument", ["position_embeddings", "shared", "carry", "past_key_values"])
def test_a_layer_that_takes_parts_of_the_context_as_arguments_is_refused(argument: str):
    namespace: dict[str, Any] = {}
    exec(f"def mix(self, x, layout, state, {argument}=None, **context): return x", namespace)
    with pytest.raises(ConfigError, match=f"{argument!r} is not passed as an argument"):
        type("Old", (RecurrentMixer,), {"mix": namespace["mix"], "cache_kind": "recurrent", "Options": RelayOptions})


def test_a_context_moves_its_tensors_and_leaves_the_cache():
    cache = object()
    context = LayerContext(
        layout=SequenceLayout(mask=torch.ones(1, 2, dtype=torch.bool)),
        position_embeddings=(torch.ones(1), torch.ones(1)),
        values={"v": torch.ones(1)},
        cache=cache,
    )
    moved = context.to("meta")
    assert moved.cache is cache and moved.layout.mask is not None and moved.layout.mask.is_meta
    assert moved.values["v"].is_meta and moved.position_embeddings is not None and moved.position_embeddings[0].is_meta
    assert isinstance(moved.layout, SequenceLayout) and EMPTY_CONTEXT.to("meta") == EMPTY_CONTEXT


def test_a_mixer_without_forward_says_so():
    class Nothing(Mixer):
        cache_kind = "recurrent"
        Options = RelayOptions

    with pytest.raises(NotImplementedError, match="Nothing defines no `forward`"):
        Nothing(relay("publish"), RelayOptions(), 0)(torch.ones(1, 2, 4))


@MIXERS.register("lazy_of_a_test")
class Lazy(Relay):
    def __init__(self, config: Any, options: RelayOptions, layer_idx: int) -> None:
        super().__init__(config, options, layer_idx)
        self.late = torch.nn.LazyLinear(config.hidden_size)


@pytest.mark.parametrize("make", [AutoModelForCausalLM.from_config, lambda config: hf_arch.cost(config, 8)])
def test_a_lazy_module_is_refused_in_one_line(make: Any) -> None:
    config = hf_arch.tiny_config("mixed", mixer=["lazy_of_a_test", "attention"])
    with pytest.raises(ConfigError, match=r"^model: layers\.0\.mixer\.late\.\w+ has no size") as refused:
        make(config)
    assert "\n" not in str(refused.value)
