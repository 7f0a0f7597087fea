"""How attention is found and told by an engine that brings its own kernels (vLLM's transformers backend).

It reads the source of each module's `forward` for a local name that is assigned from
`ALL_ATTENTION_FUNCTIONS.get_interface(...)` and called once; its kernels take windows and soft caps from the config.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.layers.attention_product import eager_attention
from hf_arch.layers.ffns.experts import GatedExperts, PlainExperts
from tests.suite.models import token_ids


def dispatches(module: nn.Module) -> bool:
    """Whether the source of `forward` has the form."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(type(module).forward)))
    names = [
        node.targets[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "ALL_ATTENTION_FUNCTIONS.get_interface"
    ]
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return len(names) == 1 and calls.count(names[0]) == 1


@pytest.mark.parametrize("name", ["gpt2", "llama", "gqa", "moe", "mla", "team"])
def test_every_attention_layer_is_found(name: str) -> None:
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name))
    found = [path for path, module in model.named_modules() if dispatches(module)]
    assert found == [f"model.layers.{layer}.mixer.product" for layer in range(model.config.num_hidden_layers)]


@pytest.fixture
def calls() -> Iterator[list[dict[str, Any]]]:
    """What an implementation called "vllm" is told; it computes by the formula what its arguments say."""
    told: list[dict[str, Any]] = []

    def attend(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, scaling: float, **kwargs: Any) -> Any:
        told.append(kwargs)
        return eager_attention(module, query, key, value, mask, scaling)

    ALL_ATTENTION_FUNCTIONS.register("vllm", attend)
    yield told
    ALL_ATTENTION_FUNCTIONS._local_mapping.pop("vllm", None)


def run(name: str, **overrides: Any) -> Any:
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name, **overrides)).eval()
    model.config._attn_implementation = "vllm"
    with torch.no_grad():
        return model.model.layers[0].mixer.product(
            *(torch.randn(1, heads, 5, 8) for heads in (4, 4, 4)),
            None,
            sliding_window=getattr(model.model.layers[0].mixer, "attention_window", None),
            softcap=getattr(model.model.layers[0].mixer, "softcap", None),
        )


def test_an_engine_is_called_for_what_the_config_says(calls: list[dict[str, Any]]) -> None:
    run("llama")
    run("llama", sliding_window=4, attn_logit_softcapping=20.0)
    assert [(one["sliding_window"], one["softcap"]) for one in calls] == [(None, None), (4, 20.0)]


@pytest.mark.parametrize(
    ("mixer", "field"),
    [({"type": "attention", "window": 3}, "sliding_window"), ({"type": "attention", "softcap": 9.0}, "softcap")],
)
def test_what_only_one_layer_says_is_refused(calls: list[dict[str, Any]], mixer: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"'vllm' would not apply {field}") as caught:
        run("llama", mixer=mixer)
    assert "\n" not in str(caught.value) and not calls


def test_alibi_is_refused(calls: list[dict[str, Any]]) -> None:
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("llama", position="alibi")).eval()
    model.config._attn_implementation = "vllm"
    with pytest.raises(ConfigError, match="would not apply position_bias ALiBi's bias"):
        model(token_ids(1, 7), attention_mask={"full_attention": None}, use_cache=False)


@pytest.mark.parametrize("experts", [GatedExperts, PlainExperts])
def test_experts_have_the_form_that_engines_replace(experts: type[nn.Module]) -> None:
    names = list(inspect.signature(experts.forward).parameters)
    assert names == ["self", "hidden_states", "top_k_index", "top_k_weights"]
