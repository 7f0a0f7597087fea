"""Our `evaluate` metrics by hand, and inside Trainer against the model's own loss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments, default_data_collator

from hf_arch.data import build_tokenizer
from tests.evaluation.tiny import WORDS, byte_tokenizer, tiny_model

metrics = pytest.importorskip("hf_arch.evaluation.metrics", reason="needs evaluate")


def test_by_hand() -> None:
    accuracy = metrics.TokenAccuracy(keep_in_memory=True)
    accuracy.add_batch(predictions=[1, 2], references=[1, 3])
    accuracy.add_batch(predictions=[4, 4], references=[4, 4])
    assert accuracy.compute() == {"token_accuracy": 0.75}
    nats = [math.log(2), math.log(8)]
    assert metrics.Perplexity(keep_in_memory=True).compute(predictions=nats, references=[0, 0])[
        "perplexity"
    ] == pytest.approx(4)
    assert metrics.BitsPerByte(keep_in_memory=True).compute(predictions=nats, references=[1, 3])[
        "bits_per_byte"
    ] == pytest.approx(1)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(kind: str) -> None:
    text = "the king, naïve: 王 is dead\n"
    tokenizer = build_tokenizer(kind, 300, lambda: iter([WORDS, text]))
    lengths = metrics.token_bytes(tokenizer)
    ids = tokenizer(text)["input_ids"]
    assert int(lengths[ids].sum()) == len(text.encode())
    assert lengths[tokenizer.eos_token_id] == 0


def test_sentencepiece_pieces_and_byte_fallback() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<unk>": 0, "▁the": 1, "<0xE2>": 2, "é": 3}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert metrics.token_bytes(tokenizer).tolist() == [0, 4, 1, 2]


def test_in_trainer_they_agree_with_the_models_loss(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("gla"), byte_tokenizer()
    ids = tokenizer(WORDS)["input_ids"]
    rows = [{"input_ids": torch.tensor(ids[i : i + 12]), "labels": torch.tensor(ids[i : i + 12])} for i in range(5)]
    rows[0]["labels"][:6] = -100  # rows of unequal weight: a mean of means would differ
    ours = metrics.LanguageModelMetrics(tokenizer)
    arguments = TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=2, batch_eval_metrics=True, use_cpu=True, report_to="none"
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=default_data_collator,
        compute_metrics=ours.compute,
        preprocess_logits_for_metrics=ours.reduce_logits,
    )
    for _ in range(2):  # the second evaluation starts afresh
        found = trainer.evaluate(rows)
        nats, tokens, right = 0.0, 0, 0
        for row in rows:
            logits = model(row["input_ids"][None]).logits[0, :-1]
            labels = row["labels"][1:]
            counted = labels != -100
            nats += torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
            tokens += int(counted.sum())
            right += int((logits.argmax(-1) == labels)[counted].sum())
        assert found["eval_perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
        assert found["eval_bits_per_byte"] == pytest.approx(nats / tokens / math.log(2), rel=1e-5)
        assert found["eval_token_accuracy"] == pytest.approx(right / tokens)
