"""Every head gives the loss and gradient of sixteen rows at once when they come as four calls of four."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

import hf_arch

from .models import ARCHITECTURES, FEW, ONE_OF_EACH_KIND

ROWS, LENGTH = 16, 12


def rows_for(head):
    """Labels that count are spread unevenly over the rows, and one quarter of them has none at all."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for index in range(ROWS):
        ids = torch.randint(3, 97, (LENGTH,), generator=generator)
        ignored = torch.arange(LENGTH) >= (index // 4) * 4
        row = {"input_ids": ids}
        if head == "causal":
            row["labels"] = ids.masked_fill(ignored, -100)
        elif head == "token":
            row["labels"] = (ids % 2).masked_fill(ignored, -100)
        elif head == "question":
            row |= {"start_positions": index % 5, "end_positions": 5 + index % 7}
        elif head == "sequence":
            row["labels"] = index % 2 if index % 4 > index // 4 else -100
        elif head == "regression":
            row["labels"] = float(index)
        else:
            row["labels"] = [float(index % 2), float(index % 3 == 0)]
        rows.append(row)
    return rows


HEADS = {
    "causal": (AutoModelForCausalLM, {}),
    "token": (AutoModelForTokenClassification, {}),
    "question": (AutoModelForQuestionAnswering, {}),
    "sequence": (AutoModelForSequenceClassification, {}),
    "regression": (AutoModelForSequenceClassification, {"num_labels": 1}),
    "several": (AutoModelForSequenceClassification, {"problem_type": "multi_label_classification"}),
}


class InOrder(Trainer):
    """The rows in their order, so that each call has its own number of labels."""

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def one_step(head, name, calls, folder, **overrides):
    auto, options = HEADS[head]
    set_seed(0)
    model = auto.from_config(hf_arch.tiny_config(name, pad_token_id=0, **options, **overrides))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    specs = model.config.ffn if isinstance(model.config.ffn, list) else [model.config.ffn]
    for spec in specs:
        if spec["type"] == "moe":
            spec["aux_loss_coef"] = 0.0  # a product of means over a call, by definition
    arguments = TrainingArguments(
        str(folder),
        max_steps=1,
        per_device_train_batch_size=ROWS // calls,
        gradient_accumulation_steps=calls,
        logging_steps=1,
        learning_rate=0.0,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        max_grad_norm=1e9,
    )
    trainer = InOrder(model, arguments, train_dataset=rows_for(head))
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return float(log["loss"]), float(log["grad_norm"])


def assert_same(head, name, folder, **overrides):
    whole = one_step(head, name, 1, folder, **overrides)
    parts = one_step(head, name, 4, folder, **overrides)
    assert whole[0] > 0 and whole[1] > 0
    assert parts == pytest.approx(whole, rel=2e-3)  # the log rounds losses to four places


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("name", "head"),
    [
        pytest.param(
            name, head, marks=() if name in (ONE_OF_EACH_KIND if head == "causal" else FEW) else pytest.mark.slow
        )
        for name in ARCHITECTURES
        for head in HEADS
    ],
)
def test_four_calls_of_four_are_one_of_sixteen(name, head, tmp_path):
    assert_same(head, name, tmp_path)


@pytest.mark.parametrize("chunk", [0, 4])
def test_penalties_too(chunk, tmp_path):
    """The penalty of the largest logits and the z-loss are sums over targets, however these are spread."""
    ffn = {"type": "moe", "num_experts": 4, "aux_loss_coef": 0.0, "z_loss_coef": 0.5}
    assert_same("causal", "llama", tmp_path, loss_chunk_size=chunk, max_logit_penalty=0.5, ffn=ffn)


@pytest.mark.parametrize("head", ["token", "sequence"])
def test_a_call_without_labels_that_count_gives_no_nan(head):
    auto, options = HEADS[head]
    model = auto.from_config(hf_arch.tiny_config("llama", pad_token_id=0, **options))
    labels = torch.full((2, LENGTH) if head == "token" else (2,), -100)
    loss = model(torch.randint(3, 97, (2, LENGTH)), labels=labels, num_items_in_batch=torch.tensor(7)).loss
    loss.backward()
    assert loss.item() == 0.0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("head", ["token", "sequence", "question"])
def test_columns_and_labels_are_found_by_the_signature(head, tmp_path):
    """Trainer drops the columns that a forward does not name."""
    auto, options = HEADS[head]
    model = auto.from_config(hf_arch.tiny_config("llama", pad_token_id=0, **options))
    trainer = Trainer(model, TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    trainer._set_signature_columns_if_needed()
    assert {"input_ids", "attention_mask", "position_ids", "inputs_embeds"} <= set(trainer._signature_columns)
    assert trainer.label_names == (["start_positions", "end_positions"] if head == "question" else ["labels"])
    out = model(torch.randint(3, 97, (2, LENGTH)), return_dict=False)
    assert isinstance(out, tuple)


LENGTHS = (11, 6, 8)


def labelled_rows(name, **overrides):
    """(classifier, ids [3, 11], the logits [3, L] of each row's first tokens alone)."""
    set_seed(0)
    config = hf_arch.tiny_config(name, pad_token_id=0, num_labels=3, **overrides)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.randint(3, 97, (3, max(LENGTHS)))
    ids[range(3), [length - 1 for length in LENGTHS]] = 0  # an end of text that pads too
    one = torch.ones(1, 1)
    alone = [model(row[None, :n], attention_mask=one.expand(1, n)).logits for row, n in zip(ids, LENGTHS, strict=True)]
    return model, ids, torch.cat(alone)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_a_label_is_read_at_the_last_valid_token_whatever_its_id(name, side):
    model, ids, alone = labelled_rows(name)
    rows, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        place = slice(0, length) if side == "right" else slice(max(LENGTHS) - length, None)
        rows[row, place], mask[row, place] = ids[row, :length], 1
    last = model.score(model.model(ids[:1], use_cache=False).last_hidden_state[:, -1])
    torch.testing.assert_close(alone[:1], last, rtol=0, atol=1e-6)
    pairs = torch.ones(max(LENGTHS), max(LENGTHS)).tril().bool() & mask.bool()[:, None, :] & mask.bool()[:, :, None]
    embeds = model.get_input_embeddings()(rows)
    for given in ({"input_ids": rows}, {"inputs_embeds": embeds}):
        for each in (mask, pairs[:, None]):
            torch.testing.assert_close(model(**given, attention_mask=each).logits, alone, rtol=0, atol=2e-5)


@torch.no_grad()
def test_rows_whose_ends_nothing_says_are_refused():
    model, ids, _ = labelled_rows("llama")
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match="attention_mask: nothing says where these 3 sequences end"):
        model(ids)
    whole = model(ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, whole)
    torch.testing.assert_close(model(ids[:1]).logits, whole[:1])
