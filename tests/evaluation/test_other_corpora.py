"""`evaluation.corpora`: held-out text of other corpora, scored by the run's own tokenizer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_arch.core.errors import ConfigError
from hf_arch.recipe.recipe import Recipe
from hf_arch.training.run import run_training
from tests.training.tiny import recipe_values, write_text


def recipe(text: Path, corpora: list[str]) -> Recipe:
    values = recipe_values(text, training={"max_steps": 1, "eval_strategy": "no", "save_strategy": "no"})
    values["evaluation"] = {**values["evaluation"], "corpora": corpora, "speed": False, "sequences": 8}
    return Recipe.from_dict(values)


def test_another_corpus_is_scored_by_the_model(tmp_path: Path) -> None:
    text = write_text(tmp_path)
    other = tmp_path / "other.txt"
    other.write_text("the king lies in the dust and no man dares to lift his crown\n" * 40)
    run_training(recipe(text, [str(other)]), tmp_path / "run", quiet=True)
    found = json.loads((tmp_path / "run" / "results.json").read_text())["corpora"][str(other)]
    assert 0 < found["tokens"] <= 8 * 32 and found["documents"] >= 1
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2), rel=1e-3)  # a token is a character
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    ids = torch.tensor([tokenizer("the king lies in the dust", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        assert abs(model(ids, labels=ids).loss.item() - found["loss"]) < 0.5  # the same kind of text, nearly untrained


@pytest.mark.parametrize(
    ("corpus", "expected"), [("no_such_corpus", "no_such_corpus"), ("greek", "does not know"), ("empty", "empty")]
)
def test_a_corpus_that_cannot_be_scored_stops_before_training(tmp_path: Path, corpus: str, expected: str) -> None:
    text = write_text(tmp_path)
    (tmp_path / "greek").mkdir()
    (tmp_path / "greek" / "a.txt").write_text("μῆνιν ἄειδε θεὰ " * 50)
    (tmp_path / "empty").mkdir()
    name = corpus if corpus == "no_such_corpus" else str(tmp_path / corpus)
    with pytest.raises(ConfigError, match=expected):
        run_training(recipe(text, [name]), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "results.json").exists()
