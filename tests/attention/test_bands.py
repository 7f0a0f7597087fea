"""Attention over a window in blocks is the attention over all pairs under a mask: outputs, gradients, caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import hf_arch
from hf_arch import checks
from hf_arch.core.registry import MIXERS
from hf_arch.layers import bands
from hf_arch.layers.mixers.attention import Attention
from hf_arch.models import mask_plan
from tests.suite.models import token_ids

LENGTH = 75
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"sliding_window": 9},
    "gqa": {"sliding_window": 1},
    "based": {},
    "griffin": {},
    "mla": {"sliding_window": 17},
    "team": {"sliding_window": 6},
    "soft cap": {"sliding_window": 9, "attn_logit_softcapping": 3.0},
    "alibi": {"sliding_window": 20, "position": "alibi"},
    "alibi and soft cap": {"sliding_window": 20, "position": "alibi", "attn_logit_softcapping": 3.0},
    "sinks": {"mixer": {"type": "attention", "window": 12, "sinks": True}, "position": "alibi"},
    "differential": {"mixer": {"type": "differential", "window": 12}},
    "shared_key": {"mixer": {"type": "shared_key", "window": 12}},
    "per layer": {"mixer": [{"type": "attention", "window": 5}, "attention", {"type": "attention", "window": 11}]},
    "shared kv": {"mixer": [{"type": "attention", "window": 5}, {"type": "attention", "window": 5, "kv": "shared"}]},
    "with gates": {"mixer": [{"type": "attention", "window": 5}, {"type": "forgetting_transformer", "window": 5}]},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "BLOCK", 8)
    monkeypatch.setattr(bands, "PAYS_FROM", 0)


@pytest.fixture
def without_bands(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Calls something with masks over all pairs of tokens."""

    def call(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(mask_plan, "window_band", lambda *_: None)
            return run(*args, **kwargs)

    return call


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[bands.Band | None]:
    """The bands of all calls, None where a window had none."""
    found: list[bands.Band | None] = []
    original = mask_plan.window_band

    def record(*args: Any) -> bands.Band | None:
        found.append(original(*args))
        return found[-1]

    monkeypatch.setattr(mask_plan, "window_band", record)
    return found


def model_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    base = name if name in hf_arch.list_architectures() else "llama"
    given = {"num_hidden_layers": 3, **MODELS[name]}
    return checks.perturbed_model(hf_arch.tiny_config(base, max_position_embeddings=256, **given)).to(dtype)


def rows(kind: str, length: int = LENGTH) -> tuple[dict[str, Tensor], Tensor]:
    """Arguments of a call with two rows, and which tokens count, bool [2, T]."""
    lengths = torch.tensor([length, length - 23])
    index = torch.arange(length)
    if kind == "plain":
        return {}, torch.ones(2, length, dtype=torch.bool)
    if kind == "offset":
        return {"position_ids": (index + 5).expand(2, -1)}, torch.ones(2, length, dtype=torch.bool)
    if kind == "documents":
        starts = torch.tensor([[0, 3, 30, 31], [0, 16, 40, 64]])
        positions = torch.stack([index - row[torch.searchsorted(row, index, right=True) - 1] for row in starts])
        return {"position_ids": positions}, torch.ones(2, length, dtype=torch.bool)
    valid = index >= (length - lengths)[:, None] if kind == "left" else index < lengths[:, None]
    if kind == "gap":
        valid = (index < 20) | (index > 31 + 2 * torch.arange(2)[:, None])
    return {"attention_mask": valid.long()}, valid


CASES = [(name, kind) for name in MODELS for kind in ("left", "documents")]
CASES += [
    (name, kind) for name in ("llama", "mla", "alibi and soft cap") for kind in ("plain", "offset", "right", "gap")
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_outputs_and_gradients_are_those_over_all_pairs(name, kind, without_bands, made) -> None:
    model = model_of(name)
    given, counted = rows(kind)
    weights = torch.randn(2, LENGTH, model.config.vocab_size, generator=torch.Generator().manual_seed(1))

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        logits = model(token_ids(2, LENGTH), use_cache=False, **given).logits * counted[..., None]
        (logits * weights).sum().backward()
        return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    logits, gradients = run()
    assert made and all((band is None) == (kind == "gap") for band in made)
    wanted, wanted_gradients = without_bands(run)
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5 * max(1, float(wanted.abs().max())))
    assert gradients.keys() == wanted_gradients.keys()
    for parameter, gradient in wanted_gradients.items():
        limit = 1e-5 * max(1, float(gradient.abs().max()))
        torch.testing.assert_close(gradients[parameter], gradient, rtol=0, atol=limit, msg=lambda m, p=parameter: p + m)


@pytest.mark.parametrize("window", [1, 2, 16, 17, 40])
@pytest.mark.parametrize("length", [2, 8, 9, 41])
def test_any_window_and_length(window, length, without_bands, made) -> None:
    model = checks.perturbed_model(hf_arch.tiny_config("gqa", sliding_window=window))
    with torch.no_grad():
        logits = model(token_ids(2, length), use_cache=False).logits
        wanted = without_bands(model, token_ids(2, length), use_cache=False).logits
    assert made[0] is not None
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5 * max(1, float(wanted.abs().max())))


@pytest.mark.parametrize("name", MODELS)
def test_chunks_with_a_cache_are_the_whole(name, without_bands, made) -> None:
    model, ids = model_of(name), token_ids(2, LENGTH)
    given, counted = rows("left")
    with torch.no_grad():
        wanted = without_bands(model, ids, use_cache=False, **given).logits
        cache, parts, done = DynamicCache(config=model.config), [], 0
        for size in (4, 30, 1, 33, 7):
            mask = {name: x[:, : done + size] for name, x in given.items()}
            parts.append(model(ids[:, done : done + size], past_key_values=cache, **mask).logits)
            done += size
    assert sum(band is not None for band in made) >= 3
    logits = torch.cat(parts, 1)
    assert done == LENGTH
    limit = 1e-4 * max(1, float(wanted.abs().max()))
    torch.testing.assert_close(logits[counted], wanted[counted], rtol=0, atol=limit)


@pytest.mark.parametrize("name", ["llama", "based", "mla", "soft cap", "alibi"])
def test_a_later_token_changes_no_earlier_output(name) -> None:
    model, ids = model_of(name), token_ids(2, LENGTH)
    other = ids.clone()
    other[:, 50] = (ids[:, 50] + 1) % 90 + 3
    with torch.no_grad():
        first, second = (model(tokens, use_cache=False).logits for tokens in (ids, other))
    assert torch.equal(first[:, :50], second[:, :50])


def test_padding_is_refused_where_all_pairs_refuse_it(made) -> None:
    model, ids = model_of("llama"), token_ids(2, LENGTH)
    cache = model(ids[:, :40], use_cache=True).past_key_values
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, -3:] = 0
    with pytest.raises(ValueError, match="pad on the left"):
        model(ids[:, 40:], past_key_values=cache, attention_mask=mask)


def test_in_bf16(without_bands) -> None:
    model, ids = model_of("llama", torch.bfloat16), token_ids(2, LENGTH)
    exact = model_of("llama")(ids, use_cache=False).logits
    errors = [(run(ids, use_cache=False).logits.float() - exact).abs().mean() for run in (model,)]
    errors.append((without_bands(model, ids, use_cache=False).logits.float() - exact).abs().mean())
    assert errors[0] < 1.2 * errors[1]


def test_dropout_drops_and_keeps_the_mean() -> None:
    config = hf_arch.tiny_config("llama", sliding_window=9, attention_dropout=0.5, num_hidden_layers=1)
    model, ids = checks.perturbed_model(config), token_ids(1, LENGTH)
    mixer, x = model.model.layers[0].mixer, torch.randn(1, 24, 2, 8)
    band = bands.build_band(9, 24, 24, None, None, x.device)
    query = torch.randn(1, mixer.num_heads, 24, mixer.head_dim)
    key, value = (torch.randn(1, mixer.num_kv_heads, 24, mixer.head_dim) for _ in range(2))
    plain, _ = mixer.product(query, key, value, band)
    draws = torch.stack([mixer.product(query, key, value, band, dropout=0.5)[0] for _ in range(2000)])
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - plain).abs() < 6 * error + 1e-6).all()
    assert ((draws.mean(0) / 2 - plain).abs() > 6 * error).any()  # what a forgotten factor 1 / (1 - p) would give
    with torch.no_grad():
        model.train()
        assert not torch.equal(model(ids, use_cache=False).logits, model(ids, use_cache=False).logits)


def test_the_blocks_of_a_loss_take_them_too(without_bands, made) -> None:
    losses = [{"type": "multi_token", "depth": 2}]
    model = checks.perturbed_model(hf_arch.tiny_config("llama", sliding_window=9, losses=losses)).train()
    ids = token_ids(2, LENGTH)
    loss = model(ids, labels=ids, use_cache=False).loss
    assert made[0] is not None and model.auxiliary_losses
    torch.testing.assert_close(loss, without_bands(model, ids, labels=ids, use_cache=False).loss, rtol=1e-5, atol=0)


def test_gradient_checkpointing_changes_nothing(made) -> None:
    model, ids = model_of("alibi").train(), token_ids(2, LENGTH)
    model(ids, labels=ids, use_cache=False).loss.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(ids, labels=ids, use_cache=False).loss.backward()
    assert all(band is not None for band in made)
    assert all(torch.equal(p.grad, wanted[name]) for name, p in model.named_parameters())


def test_recorded_weights_are_over_all_pairs() -> None:
    model = model_of("soft cap")
    out = model(token_ids(2, LENGTH), use_cache=False, output_attentions=True)
    assert [weights.shape[-2:] for weights in out.attentions] == [(LENGTH, LENGTH)] * 3


def test_a_class_that_reads_the_mask_itself_gets_all_pairs(made) -> None:
    seen = []

    class Reading(Attention):
        def attend(self, call: Any) -> Tensor:
            seen.append(call.context.attention_mask)
            return super().attend(call)

    held = MIXERS.snapshot()
    MIXERS.register("reads_masks_itself")(Reading)
    try:
        config = hf_arch.tiny_config("llama", mixer={"type": "reads_masks_itself", "window": 9})
        checks.perturbed_model(config)(token_ids(2, LENGTH), use_cache=False)
    finally:
        MIXERS.restore(held)
    assert not made and all(mask.shape[-2:] == (LENGTH, LENGTH) for mask in seen)


def test_a_window_that_is_not_shorter_has_none(made, monkeypatch) -> None:
    monkeypatch.undo()
    assert bands.BLOCK == 64
    for window in (1, 16, 64, 100, 1024):
        assert not bands.pays(window, window, window)
        assert bands.pays(window, 2 * (window + 64), 2 * (window + 64))
        assert not bands.pays(window, 1, 8192)
