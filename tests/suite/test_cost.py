"""cost() against what is really there: the model's parameters, torch's FLOP counter, the bytes of the real cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache

import hf_arch
from hf_arch.checks import cache_bytes
from tests.suite.models import ARCHITECTURES, token_ids

ATTENTION = [name for name in ("gpt2", "llama", "gqa", "team", "hybrid") if name in ARCHITECTURES]


def _counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _eager(name, **overrides):
    config = hf_arch.tiny_config(name, **overrides)
    return config, AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_exact(name):
    config = hf_arch.tiny_config(name)
    model, cost = AutoModelForCausalLM.from_config(config), hf_arch.cost(config, 64)
    assert cost.params_total == model.num_parameters()
    assert cost.params_trainable == model.num_parameters(only_trainable=True)
    assert cost.params_embedding == model.num_parameters() - model.num_parameters(exclude_embeddings=True)
    assert cost.params_embedding < cost.params_active <= cost.params_total


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("length", [1, 2, 7, 40])
def test_state_bytes_are_those_of_the_cache(name, length):
    config = hf_arch.tiny_config(name)
    model, cache = AutoModelForCausalLM.from_config(config).eval(), DynamicCache(config=config)
    with torch.no_grad():
        model(token_ids(3, length), past_key_values=cache)
    assert hf_arch.cost(config, length, batch_size=3).state_bytes(length) == cache_bytes(cache)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_flops_are_those_counted(name):
    config, model = _eager(name)
    ids, cost = token_ids(2, 48), hf_arch.cost(config, 48, batch_size=2)
    with torch.no_grad():
        assert _counted(lambda: model(ids, use_cache=False)) == pytest.approx(
            2 * 48 * cost.flops_per_token_forward, rel=0.01
        )
        assert _counted(lambda: model(ids, use_cache=False, logits_to_keep=1)) == pytest.approx(
            cost.prefill_flops, rel=0.01
        )
        cache = DynamicCache(config=config)
        model(ids, past_key_values=cache)
        step = _counted(lambda: model(ids[:, :1], past_key_values=cache))
    assert step == pytest.approx(cost.decode_flops(48), rel=0.01)
    model.train()
    train = _counted(lambda: model(ids, labels=ids, use_cache=False).loss.backward())
    assert train == pytest.approx(2 * 48 * cost.flops_per_token_train, rel=0.01)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a.unsqueeze(-1) @ b.unsqueeze(-2)


def _matmul_linear_attention(q, k, v, g=None, **kwargs):
    """The recurrence with its two products as matrix products, which the counter sees."""
    state, outputs = 0, []
    for t in range(q.shape[1]):
        state = state + _outer(k[:, t], v[:, t])
        outputs.append((q[:, t].unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1), None


def _matmul_selective_scan(x, dt, A, B, C, D, z, **kwargs):
    state, outputs = 0, []
    for t in range(x.shape[1]):
        state = state + _outer(x[:, t], B[:, t])
        outputs.append((state @ C[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, 1), None


@pytest.mark.parametrize(
    ("name", "op", "replacement"),
    [
        ("gla", "linear_attention", _matmul_linear_attention),
        ("retnet", "linear_attention", _matmul_linear_attention),
        ("mamba", "selective_scan", _matmul_selective_scan),
    ],
)
def test_recurrent_flops_are_those_of_the_naive_form(name, op, replacement, monkeypatch):
    monkeypatch.setattr(f"hf_arch.layers.mixers.{name}.{op}", replacement)
    config, model = _eager(name, hidden_size=256)  # wide, since the counter misses short convolutions
    ids, cost = token_ids(2, 12), hf_arch.cost(config, 12, batch_size=2)
    with torch.no_grad():
        forward = _counted(lambda: model(ids, use_cache=False))
    assert forward == pytest.approx(2 * 12 * cost.flops_per_token_forward, rel=0.01)


def test_the_published_size_of_gpt2():
    assert hf_arch.cost(hf_arch.config_from_dict({"architecture": "gpt2"}), 1024).params_total == 124_439_808


@pytest.mark.parametrize("field", ["seq_len", "batch_size"])
def test_sizes_below_one_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}: 0 is not allowed"):
        hf_arch.cost(hf_arch.tiny_config("llama"), **{"seq_len": 8, field: 0})
