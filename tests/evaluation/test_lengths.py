"""`evaluation.lengths`: the loss by position at every length asked for, also beyond the trained one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_arch.core.errors import ConfigError
from hf_arch.data import prepare_data
from hf_arch.recipe.recipe import Recipe
from hf_arch.training.run import run_training
from tests.training.tiny import recipe_values, write_text


def recipe(text: Path, lengths: list[int], **model: Any) -> Recipe:
    values = recipe_values(text, training={"max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}, model={})
    values["model"].update(model)
    values["evaluation"] = {**values["evaluation"], "lengths": lengths, "speed": False}
    return Recipe.from_dict(values)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


def test_the_losses_are_the_models(text: Path, tmp_path: Path) -> None:
    wanted = recipe(text, [16, 64])
    run_training(wanted, tmp_path, quiet=True)
    found = json.loads((tmp_path / "results.json").read_text())["loss_by_length"]
    assert set(found) == {"16", "64"} and found["64"]["loss_by_position"][-1][1] == 64
    model, stream = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
        prepare_data(wanted.data).validation.stream,
    )
    for length in (16, 64):  # trained at 32
        rows = [torch.from_numpy(stream.read(at * (length + 1), (at + 1) * (length + 1))) for at in range(2)]
        rows = rows[: found[str(length)]["rows"]]
        nats = []
        for row in rows:
            with torch.no_grad():
                logits = model(row[None, :-1]).logits.log_softmax(-1)[0]
            nats.append(-logits.gather(1, row[1:, None])[:, 0])
        if found[str(length)]["rows"] == 2:
            assert found[str(length)]["loss"] == pytest.approx(torch.stack(nats).mean().item(), rel=1e-4)
            assert found[str(length)]["loss_by_position"][0][2] == pytest.approx(
                torch.stack(nats)[:, 0].mean().item(), rel=1e-4
            )


@pytest.mark.parametrize(
    ("lengths", "model", "expected"),
    [
        ([1], {}, "lengths from 2"),
        ([16, 16], {}, "each once"),
        ([100_000], {}, "tokens of held-out text"),
        ([64], {"position": "learned"}, "beyond the 32 learned positions"),
    ],
)
def test_a_length_that_cannot_be_measured_is_one_line(
    text: Path, tmp_path: Path, lengths: list[int], model: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        run_training(recipe(text, lengths, **model), tmp_path / "run", quiet=True)
    assert str(caught.value).startswith("evaluation.lengths") and not (tmp_path / "run" / "results.json").exists()
