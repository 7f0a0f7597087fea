"""Strided windows count every token once, with the loss that the whole sequence gives wherever it fits."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hf_arch.core.errors import ConfigError
from hf_arch.evaluation.windows import DocumentLoss, document_losses, loss_by_position, row_nats, token_nats
from tests.evaluation.tiny import byte_tokenizer, tiny_model

ARCHITECTURES = ("gpt2", "gla", "mamba", "hybrid")


class CountsContext(nn.Module):
    """Gives the token after a context of n tokens the likelihood 1 / (n + 1): the loss tells how much was shown."""

    device = torch.device("cpu")

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        length = torch.arange(1, input_ids.shape[1] + 1).float()
        # Two classes, both tokens of the texts here are class 1: softmax gives it 1 / (n + 1).
        logits = torch.stack([length.log(), torch.zeros_like(length)], dim=-1)
        return SimpleNamespace(logits=logits.expand(*input_ids.shape, 2))


def contexts(length: int, window: int, stride: int, batch_size: int = 3) -> list[int]:
    """How many tokens were shown before each token of a text of `length` tokens."""
    nats = token_nats(CountsContext(), torch.ones(length).long(), window=window, stride=stride, batch_size=batch_size)
    return [round(math.exp(value)) - 1 for value in nats.tolist()]


@given(length=st.integers(2, 40), window=st.integers(1, 50), share=st.floats(0, 1), batch_size=st.integers(1, 5))
@settings(deadline=None)
def test_every_token_has_all_the_context_that_the_stride_promises(
    length: int, window: int, share: float, batch_size: int
) -> None:
    stride = max(1, round(share * window))
    seen = contexts(length, window, stride, batch_size)
    assert len(seen) == length - 1
    for place, context in enumerate(seen, start=1):
        assert min(place, window - stride + 1) <= context <= min(place, window)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("stride", [1, 7, 21, 30])
def test_a_text_that_fits_has_the_loss_of_the_whole_sequence(name: str, stride: int) -> None:
    model = tiny_model(name)
    tokens = torch.randint(3, model.config.vocab_size, (22,))
    strided = token_nats(model, tokens, window=30, stride=stride).mean()
    whole = model(tokens[None], labels=tokens[None]).loss
    torch.testing.assert_close(strided, whole.detach())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_windows_do_not_depend_on_their_batch(name: str) -> None:
    model = tiny_model(name)
    tokens = torch.randint(3, model.config.vocab_size, (50,))
    alone = token_nats(model, tokens, window=16, stride=5, batch_size=1)
    together = token_nats(model, tokens, window=16, stride=5, batch_size=8)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-4)


def test_documents_are_scored_alone_and_add_up() -> None:
    model, tokenizer = tiny_model("gla"), byte_tokenizer()
    texts = ["the king", "is dead: é"]
    losses = document_losses(model, tokenizer, texts, window=64)
    assert [loss.bytes for loss in losses] == [8, 11]
    assert [loss.tokens for loss in losses] == [8, 11]
    for text, loss in zip(texts, losses, strict=True):
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
        assert loss.nats / loss.tokens == pytest.approx(model(ids, labels=ids).loss.item(), abs=1e-5)
    total = losses[0] + losses[1]
    assert total.bits_per_byte == pytest.approx(sum(loss.nats for loss in losses) / math.log(2) / 19)


def test_a_uniform_model_spends_the_logarithm_of_its_vocabulary() -> None:
    model, tokenizer = tiny_model("llama"), byte_tokenizer()
    nn.init.zeros_(model.lm_head.weight)
    loss = sum(document_losses(model, tokenizer, ["dust", "crown"], window=3, stride=2), DocumentLoss(0.0, 0, 0))
    assert loss.perplexity == pytest.approx(len(tokenizer), rel=1e-5)
    assert loss.bits_per_byte == pytest.approx(math.log2(len(tokenizer)), rel=1e-5)


def test_loss_by_position_is_the_mean_over_rows() -> None:
    model = tiny_model("retnet")
    rows = torch.randint(3, model.config.vocab_size, (5, 17))
    found = loss_by_position(model, list(rows), batch_size=2)
    expected = row_nats(model, rows[:, :-1], rows[:, 1:]).double()
    torch.testing.assert_close(found.mean, expected.mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.stderr, expected.std(0) / math.sqrt(5), rtol=0, atol=1e-5)
    assert [bucket[:2] for bucket in found.buckets()] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16)]


def test_a_model_that_uses_its_context_gains_by_it() -> None:
    """The likelihood 1 / (n + 1) falls with n, so that this one loses; a model blind to its context gains nothing."""
    losing = loss_by_position(CountsContext(), [torch.ones(33).long()] * 2)
    assert losing.context_gain < -0.5
    blind = tiny_model("llama")
    nn.init.zeros_(blind.lm_head.weight)
    assert loss_by_position(blind, [torch.randint(3, 200, (33,)) for _ in range(4)]).context_gain == pytest.approx(0)


@pytest.mark.parametrize(
    ("tokens", "window", "stride", "expected"),
    [(1, 4, 2, "1 tokens are too few"), (9, 0, 0, "window: 0"), (9, 4, 5, "stride: 5"), (9, 4, 0, "stride: 0")],
)
def test_mistakes_are_named(tokens: int, window: int, stride: int, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        token_nats(CountsContext(), torch.ones(tokens).long(), window=window, stride=stride)


def test_an_empty_document_is_named() -> None:
    with pytest.raises(ConfigError, match="document 1"):
        document_losses(tiny_model("gpt2"), byte_tokenizer(), ["a", ""], window=8)
