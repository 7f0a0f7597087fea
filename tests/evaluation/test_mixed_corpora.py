"""A measurement on fewer rows than a mixture has is one of every corpus: in training, at other lengths, by `eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_arch.data import prepare_data
from hf_arch.data.dataset import first_rows
from hf_arch.evaluation import lengths, text_loss
from hf_arch.evaluation.perplexity import sum_nats
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import read_metrics
from hf_arch.training.run import run_training
from tests.training.tiny import recipe_values

ROWS = 4


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Two corpora of one letter each, whose losses differ by much: one is seen three times as often."""
    paths = [tmp_path / f"{letter}.txt" for letter in "ab"]
    for path in paths:
        path.write_text(path.stem * 8000, encoding="utf-8")
    values: dict[str, Any] = recipe_values(paths[0], evaluation={"sequences": ROWS, "speed": False})
    mixture = {str(path): weight for path, weight in zip(paths, (3.0, 1.0), strict=True)}
    values["data"] = {"mixture": mixture, "tokenizer": "byte", "sequence_length": 32}
    return Recipe.from_dict(values)


def test_the_loss_during_training(recipe: Recipe, tmp_path: Path) -> None:
    run_training(recipe, tmp_path / "run", quiet=True)
    evaluated = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_loss" in row]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    validation = prepare_data(recipe.data).validation

    def loss(rows: list[int]) -> float:
        batch = {key: torch.stack([validation[row][key] for row in rows]) for key in validation[0]}
        nats, tokens = sum_nats(model, [batch], torch.device("cpu"))
        return nats / tokens

    assert evaluated[-1]["val_loss"] == pytest.approx(loss(first_rows(validation, ROWS)), rel=1e-5)
    assert evaluated[-1]["val_loss"] != pytest.approx(loss(list(range(ROWS))), rel=1e-3)


def test_rows_of_other_lengths_and_of_a_limit(recipe: Recipe) -> None:
    prepared = prepare_data(recipe.data)
    letters = set(prepared.tokenizer.convert_tokens_to_ids(["a", "b"]))
    rows = torch.stack(lengths._rows(prepared.validation, 8, ROWS * 9))
    assert letters <= set(rows.flatten().tolist()) and len(rows) == ROWS
    limited = text_loss._tokens(prepared, text_loss.TextOptions(limit=ROWS))
    assert letters <= set(limited.tolist()) and len(limited) == ROWS * 32
