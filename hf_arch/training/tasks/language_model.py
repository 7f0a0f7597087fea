"""Language modelling: packed rows of a corpus, the loss of the next token, held-out text, speed and a sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments, default_data_collator

from hf_arch.data import SeededOrder, prepare_data
from hf_arch.data.dataset import first_rows
from hf_arch.data.seen_rows import seen_text, text_fingerprint
from hf_arch.data.text_bytes import text_bytes
from hf_arch.data.validation_parts import validation_part
from hf_arch.evaluation.generation import SamplingOptions, generate_text
from hf_arch.evaluation.lengths import check_lengths, losses_by_length
from hf_arch.evaluation.metric import metric_results, parse_metrics, try_metrics
from hf_arch.evaluation.other_corpora import corpus_losses, read_corpora
from hf_arch.evaluation.special_tokens import prompt_ids
from hf_arch.evaluation.speed import measure_inference
from hf_arch.recipe.build import build_config
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.provenance import order_fingerprint, tokenizer_fingerprint
from hf_arch.training.callbacks import MetricsLog
from hf_arch.training.tasks.base import Task
from hf_arch.training.trainer import ArchTrainer

SCORED_TOKENS, SCORED_LOGITS = 4096, 1 << 22
"""How many tokens and logits are scored at once at the end of a run, whose evaluations may have taken fewer: a small
model spends its time between products of a few rows. Training is over, so its peak memory is not raised."""


class LanguageModelTask(Task):
    """The text of a recipe's `data` section, prepared; raises `ConfigError` where that or `evaluation` is wrong."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.training = recipe.training
        self.sequence_length = recipe.data.sequence_length
        self.isolates_documents = recipe.data.isolate_documents
        self.data = data = prepare_data(recipe.data)
        self.config = build_config(recipe, data.tokenizer)
        check_lengths(recipe.evaluation.lengths, self.config, data.validation)
        read_corpora(recipe.evaluation.corpora, recipe.data, data.tokenizer, self._measured_tokens)
        self.metrics = parse_metrics(recipe.evaluation.metrics)
        self.train = data.train
        self.validation = validation_part(data.validation, recipe.evaluation.rows)
        self.rows = (len(data.train), len(data.validation))
        self.fingerprint, self.attribution = data.fingerprint, data.attribution
        self.tokenizer_fingerprint = tokenizer_fingerprint(data.tokenizer)

    def order(self, seed: int) -> SeededOrder:
        return self.data.order(seed)

    def order_fingerprint(self, order: SeededOrder) -> str:
        return order_fingerprint(order, self.fingerprint)

    def look(self) -> Tensor:
        row: Tensor = self.data.validation[0]["input_ids"]
        return row[None]

    def trainer_options(self, args: TrainingArguments) -> dict[str, Any]:
        return {
            "train_dataset": self.train,
            "eval_dataset": self.validation,
            "metrics": self.metrics,
            "eval_sequences": self.recipe.evaluation.sequences,
            "data_collator": default_data_collator,
            "processing_class": self.data.tokenizer,
        }

    def scored_together(self, trainer: ArchTrainer) -> Tensor | None:
        rows = first_rows(self.validation, self.recipe.evaluation.final_sequences)[: self._rows_at_once(trainer)]
        return torch.stack([self.validation[row]["input_ids"] for row in rows])

    def _rows_at_once(self, trainer: ArchTrainer) -> int:
        fitting = min(SCORED_TOKENS, SCORED_LOGITS // self.config.vocab_size) // self.sequence_length
        return max(trainer.args.per_device_eval_batch_size, fitting)

    def score(self, trainer: ArchTrainer, log: MetricsLog) -> dict[str, Any]:
        sequences = self.recipe.evaluation.final_sequences
        scored = trainer.score(self.validation, sequences, self._rows_at_once(trainer))
        return {
            "final_val_loss": scored.loss,
            "final_val_perplexity": scored.perplexity,
            "bits_per_byte": scored.bits_per_byte,
            "val_tokens": scored.tokens,
            **seen_text(self.data.train, self.data.validation),
            "text_fingerprint": text_fingerprint(self.data.train, self.data.validation),
            "text_bytes": text_bytes(
                self.data.tokenizer,
                self.data.train,
                self.data.validation,
                tokens_seen=trainer.state.global_step * log.tokens_per_step,
                tokens_scored=scored.tokens,
            ),
            "plugin_metrics": metric_results(
                self.metrics, trainer.measure(self.validation, sequences or len(self.validation))
            ),
        }

    def prepare(self, model: PreTrainedModel) -> None:
        try_metrics(self.metrics, model, self.validation[0], model.device)

    def save_beside(self, folder: Path) -> None:
        self.data.tokenizer.save_pretrained(str(folder))

    def measure(self, trainer: ArchTrainer) -> dict[str, Any]:
        """Speed of generation and a sample. Sharded weights (FSDP) cannot generate here; the keys are left out then."""
        evaluation, model = self.recipe.evaluation, trainer.accelerator.unwrap_model(trainer.model)
        if trainer.is_fsdp_enabled:
            return {}
        measured: dict[str, Any] = {}
        room = self.config.max_position_embeddings
        row = self.data.validation[0]["input_ids"]
        with trainer.accelerator.autocast():
            if evaluation.speed:
                tokens = max(2, min(evaluation.speed_tokens, len(row), room // 2))
                speed = measure_inference(model, row[None, :tokens], tokens)
                measured["prefill_tokens_per_second"] = speed.prefill
                measured["decode_tokens_per_second"] = speed.decode
            prompt = evaluation.prompt or self.data.tokenizer.decode(
                row[: min(16, room // 2)], skip_special_tokens=True
            )
            used = len(prompt_ids(self.data.tokenizer, prompt))
            options = SamplingOptions(
                max_new_tokens=max(1, min(evaluation.new_tokens, room - used)),
                temperature=evaluation.temperature,
                top_k=evaluation.top_k,
                seed=trainer.args.seed,
            )
            model.eval()
            generated = generate_text(model, self.data.tokenizer, prompt, options)
            tokens = self._measured_tokens
            if evaluation.lengths:
                measured["loss_by_length"] = losses_by_length(model, self.data.validation, evaluation.lengths, tokens)
            if evaluation.corpora:
                texts = read_corpora(evaluation.corpora, self.recipe.data, self.data.tokenizer, tokens)
                measured["corpora"] = corpus_losses(model, self.data.tokenizer, texts, self.sequence_length)
        measured["sample"] = {"prompt": prompt, "text": generated.text}
        return measured

    @property
    def _measured_tokens(self) -> int:
        """Tokens of text on which lengths and other corpora are measured."""
        return (self.recipe.evaluation.sequences or 256) * self.sequence_length
