"""Metrics of `evaluate` for language models, usable by themselves and in Trainer.

    metrics = LanguageModelMetrics(tokenizer)
    Trainer(..., compute_metrics=metrics.compute, preprocess_logits_for_metrics=metrics.reduce_logits,
            args=TrainingArguments(..., batch_eval_metrics=True))

gives `eval_perplexity`, `eval_bits_per_byte` and `eval_token_accuracy`, exact over all tokens (never a mean of means).
"""

from __future__ import annotations

import math
from typing import Any

import datasets
import evaluate
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EvalPrediction, PreTrainedTokenizerFast

from hf_arch.data.text_bytes import token_pieces

_ABOUT = "Sums over all tokens, divided once."


def _info(description: str, predictions: str, references: str) -> evaluate.MetricInfo:
    features = {"predictions": datasets.Value(predictions), "references": datasets.Value(references)}
    return evaluate.MetricInfo(
        description=description, citation="", inputs_description=_ABOUT, features=datasets.Features(features)
    )


class TokenAccuracy(evaluate.Metric):
    """Share of tokens that are the likeliest one. Predictions and references: token ids."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("Share of tokens predicted exactly.", "int32", "int32")

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        right = sum(a == b for a, b in zip(predictions, references, strict=True))
        return {"token_accuracy": right / len(references)}


class Perplexity(evaluate.Metric):
    """exp(mean nats per token). Predictions: the nats of each token; references: the tokens (only counted)."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("exp of the mean negative log-likelihood of a token.", "float32", "int32")

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, float]:
        mean = math.fsum(predictions) / len(references)
        return {"perplexity": math.exp(mean) if mean < 700 else math.inf}


class BitsPerByte(evaluate.Metric):
    """Bits of information per UTF-8 byte of text. Predictions: nats of each token; references: its bytes."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("Negative log-likelihood in bits per byte of text.", "float32", "int32")

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, float]:
        length = sum(references)
        return {"bits_per_byte": math.fsum(predictions) / math.log(2) / length if length else math.nan}


class LanguageModelMetrics:
    """The three metrics as Trainer's `compute_metrics` and `preprocess_logits_for_metrics`.

    Needs `batch_eval_metrics=True`: batches are reduced to two numbers a token and added up as they come.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.bytes = token_bytes(tokenizer)
        self.accuracy = TokenAccuracy(keep_in_memory=True)
        self.perplexity = Perplexity(keep_in_memory=True)
        self.bits_per_byte = BitsPerByte(keep_in_memory=True)

    @staticmethod
    def reduce_logits(logits: Any, labels: Tensor) -> Tensor:
        """[B, T - 1, 2] (float64): the likeliest token and the nats of the true one, for the labels after the first."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        shifted = labels[:, 1:]
        nats = torch.stack(
            [
                F.cross_entropy(row.float(), label, ignore_index=-100, reduction="none")
                for row, label in zip(logits[:, :-1], shifted, strict=True)
            ]
        )
        # Float64 holds every token id; bf16, the dtype that the logits may have, would not.
        return torch.stack([logits[:, :-1].argmax(-1).double(), nats.double()], dim=-1)

    def compute(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Adds a batch; the metrics over everything added where `compute_result` is set (and it starts afresh)."""
        reduced, labels = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)[:, 1:]
        counted = labels != -100
        guesses, nats = reduced[..., 0][counted].long(), reduced[..., 1][counted]
        tokens = labels[counted].cpu()
        self.accuracy.add_batch(predictions=guesses.tolist(), references=tokens.tolist())
        self.perplexity.add_batch(predictions=nats.tolist(), references=tokens.tolist())
        self.bits_per_byte.add_batch(predictions=nats.tolist(), references=self.bytes[tokens].tolist())
        if not compute_result:
            return {}
        return {**self.accuracy.compute(), **self.perplexity.compute(), **self.bits_per_byte.compute()}


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """UTF-8 bytes of text that each token stands for, int64 [`vocabulary_size`]; 0 for special tokens."""
    return torch.tensor([len(piece) for piece in token_pieces(tokenizer)], dtype=torch.int64)
