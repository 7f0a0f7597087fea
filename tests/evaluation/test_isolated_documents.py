"""A run that keeps documents apart is scored so too: by `perplexity`, by metrics and by `evaluation.lengths`."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_arch.core.errors import ConfigError
from hf_arch.data import prepare_data
from hf_arch.evaluation.metric import Measurement
from hf_arch.evaluation.metric_scores import score_metrics
from hf_arch.evaluation.model_scores import EvalOptions, evaluate_path
from hf_arch.evaluation.text_loss import TextOptions
from hf_arch.recipe.recipe import Recipe
from hf_arch.training.run import run_training
from tests.training.tiny import SENTENCE, recipe_values


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    draw = random.Random(0)
    words = SENTENCE.split()
    rows = [{"text": " ".join(draw.choices(words, k=draw.choice([1, 6, 30])))} for _ in range(200)]
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    data = {"isolate_documents": True}
    evaluation = {"lengths": [16], "speed": False, "new_tokens": 1, "final_sequences": None}
    return Recipe.from_dict(recipe_values(file, training=training, data=data, evaluation=evaluation))


@pytest.fixture(scope="module")
def run(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "isolated"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ARCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        run_training(recipe, folder, quiet=True)
    return folder


def documents(recipe: Recipe, length: int | None = None) -> Iterator[torch.Tensor]:
    """Each document that the validation rows hold (or the whole text, in pieces of `length` tokens of a document)."""
    data = prepare_data(recipe.data, progress=False).validation
    count = len(data) * data.sequence_length if length is None else data.num_tokens
    start, tokens = 0, torch.from_numpy(data.stream.read(0, count))
    for place, token in enumerate(tokens.tolist()):
        if token == data.eos_token_id or place == count - 1:
            document, start = tokens[start : place + 1], place + 1
            if length is None:
                yield document
            else:
                yield from (part for part in document.split(length) if len(part) == length)


@torch.no_grad()
def nats(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    if len(tokens) < 2:
        return torch.zeros(0)
    logits = model(tokens[None, :-1], use_cache=False).logits.log_softmax(-1)[0]
    return -logits.gather(1, tokens[1:, None])[:, 0]


def test_the_task_perplexity_and_metrics_see_one_document_at_a_time(recipe: Recipe, run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    found = evaluate_path(str(run), EvalOptions(("perplexity",)))["results"]["perplexity"]
    windows = [part for text in documents(recipe) for part in windows_of(text, 32)]
    expected = torch.cat([nats(model, part) for part in windows])
    assert found["tokens"] == len(expected)
    assert found["loss"] == pytest.approx(expected.mean().item(), rel=1e-4)


def windows_of(text: torch.Tensor, window: int) -> list[torch.Tensor]:
    """Every token but the first is asked for once, given at most `window` tokens before it."""
    return [text[start : start + window + 1] for start in range(0, max(len(text) - 1, 0), window)]


def test_metrics_get_positions_that_restart(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run / "model"), AutoTokenizer.from_pretrained(run / "model")
    seen: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(Measurement, "add", lambda _self, _model, batches, _device: seen.extend(batches))
    score_metrics(str(run), model, tokenizer, [], TextOptions())
    assert any((batch["position_ids"][:, 1:] == 0).any() for batch in seen)
    for batch in seen:
        starts = torch.ones_like(batch["input_ids"], dtype=torch.bool)
        starts[:, 1:] = batch["input_ids"][:, :-1] == tokenizer.eos_token_id
        assert bool(((batch["position_ids"] == 0) == starts).all())
        assert bool(((batch["labels"] == -100) == starts).all())


def test_rows_of_other_lengths_are_of_one_document(recipe: Recipe, run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    found = json.loads((run / "results.json").read_text())["loss_by_length"]["16"]
    rows = list(documents(recipe, 17))[: found["rows"]]
    assert found["rows"] > 2
    assert found["loss"] == pytest.approx(
        math.fsum(nats(model, row).mean().item() for row in rows) / len(rows), rel=1e-4
    )


def test_lengths_that_no_document_has_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    values = recipe.to_dict()
    values["evaluation"]["lengths"] = [400]
    with pytest.raises(ConfigError, match=r"evaluation\.lengths: 400 needs 2 rows of 401 tokens within documents"):
        run_training(Recipe.from_dict(values), tmp_path / "run", quiet=True)
