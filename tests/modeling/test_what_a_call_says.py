"""What a call says of its tokens, labels and cache is honoured or refused in one line, whatever the vocabulary's size
and whoever computes the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, Trainer, TrainingArguments
from transformers.utils import logging

import hf_arch
from hf_arch import perturbed
from tests.suite.models import ONE_OF_EACH_KIND, close, perturbed_model, token_ids


def _chunked(name: str, chunk: int) -> Any:
    return perturbed_model(name, loss_chunk_size=chunk, residual_dropout=0.0, embedding_dropout=0.0)


@pytest.mark.parametrize("wrong", [-1, -99, 97, 5000])
@pytest.mark.parametrize("chunk", [0, 4])
@pytest.mark.parametrize("training", [False, True])
def test_a_label_that_is_no_token_is_refused(wrong: int, chunk: int, training: bool) -> None:
    """In chunks a negative one was taken for token 0."""
    model, ids = _chunked("llama", chunk).train(training), token_ids(2, 9)
    labels = ids.clone()
    labels[1, 4] = wrong
    with pytest.raises(ValueError, match=f"labels: {wrong} is not allowed; use ids of tokens, 0 to 96, and -100"):
        model(ids, labels=labels)


@pytest.mark.parametrize("chunk", [0, 4])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("keep", [3, torch.tensor([2, 3, 7])])
def test_labels_beside_logits_to_keep(chunk: int, training: bool, keep: Any) -> None:
    """Labels of all tokens give the loss of all, those of the kept ones that of these; the logits are those to keep."""
    model, ids = _chunked("gla", chunk).train(training), token_ids(2, 9)
    whole = model(ids, labels=ids)
    out = model(ids, labels=ids, logits_to_keep=keep)
    kept = whole.logits[:, -keep:] if isinstance(keep, int) else whole.logits[:, keep]
    close(out.loss, whole.loss, 1e-6)
    close(out.logits, kept, 1e-6)
    labels = ids[:, :3]
    expected = nn.functional.cross_entropy(kept[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    out = model(ids, labels=labels, logits_to_keep=keep)
    close(out.loss, expected, 1e-6)
    close(out.logits, kept, 1e-6)
    with pytest.raises(ValueError, match=r"labels: shape \[2, 5\] .* pass \[2, 9\], as input_ids, or \[2, 3\] of the"):
        model(ids, labels=ids[:, :5], logits_to_keep=keep)


@pytest.mark.parametrize("given", [{"losses": ["multi_token"]}, {"ffn": "moe"}], ids=["multi_token", "moe"])
def test_losses_over_all_tokens_need_all_labels(given: dict[str, Any]) -> None:
    model = perturbed.perturbed_model(hf_arch.tiny_config("llama", **given), 0).train()
    ids = token_ids(2, 9)
    with pytest.raises(ValueError, match=r"labels: shape \[2, 3\] is not allowed; pass \[2, 9\], as input_ids$"):
        model(ids, labels=ids[:, -3:], logits_to_keep=3)


@pytest.mark.parametrize(
    ("given", "named"), [({"losses": ["multi_token"]}, "multi_token"), ({"ffn": "moe"}, "the balance of the experts")]
)
@pytest.mark.parametrize("how", ["label_smoothing", "compute_loss_func"])
def test_a_trainer_that_leaves_losses_of_the_model_out_says_so(
    given: dict[str, Any], named: str, how: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer takes the labels away and computes a loss of its own from the logits."""
    said: list[str] = []
    monkeypatch.setattr(logging.get_logger("hf_arch.models.causal_lm"), "warning_once", said.append)
    model = perturbed.perturbed_model(hf_arch.tiny_config("llama", **given), 0).train()
    options = {"label_smoothing_factor": 0.1} if how == "label_smoothing" else {}
    own = None if options else lambda out, labels, num_items_in_batch=None: out.logits.float().mean()
    trainer = Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, **options), compute_loss_func=own)
    ids = token_ids(2, 9)
    trainer.compute_loss(model, {"input_ids": ids, "labels": ids.clone()})
    assert len(said) == 1 and "labels: " in said[0] and f"without {named}; pass labels" in said[0]
    said.clear()
    model(ids, labels=ids)
    model.eval()(ids)
    with torch.no_grad():
        model.train()(ids)
    assert not said


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_no_tokens_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=r"^input_ids: 0 tokens are not allowed; pass one at least$"):
        perturbed_model(name)(torch.zeros(1, 0, dtype=torch.long))


@torch.no_grad()
@pytest.mark.parametrize("name", [*ONE_OF_EACH_KIND, "yoco", "nsa"])
def test_a_cache_that_a_model_of_another_config_filled_is_refused(name: str) -> None:
    """Some went on from the other's states, whose shape was the same; others ended in an error about sizes."""
    model, ids = perturbed_model(name), token_ids(2, 9)
    other = perturbed_model(name, hidden_size=2 * model.config.hidden_size)
    cache = DynamicCache(config=model.config)
    other(ids, past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match=r"^past_key_values: a model whose config differs \(hidden_size\) has filled"):
        model(ids, past_key_values=cache)
    cache.reset() if name in ("gla", "mamba2", "rwkv7", "hgrn", "gated_delta_net") else None
    if not cache.get_seq_length():  # an empty one is anybody's
        close(model(ids, past_key_values=cache).logits, model(ids).logits)
    twin = perturbed_model(name)
    cache = DynamicCache(config=model.config)
    model(ids[:, :5], past_key_values=cache, use_cache=True)
    close(twin(ids[:, 5:], past_key_values=cache).logits, model(ids).logits[:, 5:])


def test_a_position_before_the_first_is_refused_by_learned_positions() -> None:
    with pytest.raises(IndexError, match="position -2: the model has learned positions 0 to 255; count from 0"):
        perturbed_model("gpt2")(token_ids(1, 3), position_ids=torch.tensor([[-2, -1, 0]]))


@pytest.mark.parametrize("name", ["nsa", "moba"])
def test_chosen_blocks_do_not_depend_on_the_default_dtype(name: str) -> None:
    model, ids = perturbed_model(name), token_ids(2, 12)
    expected = model(ids).logits
    try:
        torch.set_default_dtype(torch.float64)
        actual = model(ids).logits
    finally:
        torch.set_default_dtype(torch.float32)
    close(actual, expected, 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "mamba2"])
@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"input_ids": [[5, 6]]}, r"input_ids: a list is not allowed; pass an int64 tensor \[B, T\]"),
        ({"input_ids": torch.tensor([5, 6])}, r"input_ids: shape \[2\] is not allowed; pass \[B, T\]"),
        ({"input_ids": torch.tensor([[[5]]])}, r"input_ids: shape \[1, 1, 1\] is not allowed"),
        ({"input_ids": torch.tensor([[5.0]])}, r"input_ids: torch\.float32 is not allowed; use torch\.int64"),
        ({"input_ids": torch.tensor([[True]])}, r"input_ids: torch\.bool is not allowed"),
        ({"input_ids": torch.tensor([[5, 97]])}, r"input_ids: 97 is not allowed; use ids of tokens, 0 to 96"),
        ({"input_ids": torch.tensor([[-1, 4]])}, r"input_ids: -1 is not allowed"),
        ({"input_ids": torch.zeros(0, 4).long()}, r"input_ids: 0 rows are not allowed"),
        (
            {"inputs_embeds": torch.zeros(1, 4, 7)},
            r"inputs_embeds: shape \[1, 4, 7\] is not allowed; pass \[B, T, 32\]",
        ),
        ({"inputs_embeds": torch.zeros(4, 32)}, r"inputs_embeds: shape \[4, 32\] is not allowed"),
        ({"input_ids": torch.tensor([[5]]), "attention_mask": [[1]]}, r"attention_mask: a list is not allowed"),
    ],
)
def test_tokens_in_another_form_are_refused_in_one_line(name: str, given: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        perturbed_model(name)(**given)
    assert "\n" not in str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "moe", "mixed"])
def test_a_config_that_asks_for_tuples_gets_them(name: str) -> None:
    model, ids = perturbed_model(name), token_ids()
    expected = model(ids, labels=ids)
    model.config.return_dict = False
    found = model(ids, labels=ids)
    assert isinstance(found, tuple) and torch.equal(found[0], expected.loss) and torch.equal(found[1], expected.logits)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gla"])
def test_generate_refuses_rows_that_end_with_padding(name: str) -> None:
    """transformers reads the next token at the padding, and counts positions from there anew."""
    model, ids = perturbed_model(name), token_ids(3, 6)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    with pytest.raises(ValueError, match="attention_mask: row 1 ends with padding, which generate cannot continue"):
        model.generate(ids, attention_mask=mask, max_new_tokens=2)
    mask[1] = 0  # a row without tokens, as some loaders fill a batch up, harms no other
    filled = model.generate(ids, attention_mask=mask, max_new_tokens=2)
    assert torch.equal(filled[::2], model.generate(ids[::2], max_new_tokens=2))
