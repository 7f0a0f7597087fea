"""What is measured of the final weights: models that see ahead or that scoring changes, and no trace left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.plugins import separate_plugins
from hf_arch.core.registry import MIXERS
from hf_arch.layers.mixers.attention import Attention, AttentionOptions
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.record import RunRecord
from hf_arch.training.last_look import LastLook
from hf_arch.training.run import run_training
from tests.training.tiny import recipe_values

ROW = torch.arange(3, 35)[None]


@MIXERS.register("sees_ahead")
class SeesAhead(Attention):
    """Mixes the next token in."""

    Options = AttentionOptions

    def forward(self, hidden_states: Tensor, context=None):  # type: ignore[override]
        return super().forward(hidden_states + hidden_states.roll(-1, 1), context)


@MIXERS.register("sees_blocks")
class SeesBlocks(Attention):
    """Mixes the mean of each whole block of 100 tokens into all of them."""

    Options = AttentionOptions

    def forward(self, hidden_states: Tensor, context=None):  # type: ignore[override]
        whole = hidden_states.shape[1] // 100 * 100
        blocks = hidden_states[:, :whole].unflatten(1, (-1, 100))
        mixed = (blocks + blocks.mean(2, keepdim=True)).flatten(1, 2)
        return super().forward(torch.cat([mixed, hidden_states[:, whole:]], 1), context)


@MIXERS.register("sees_the_batch")
class SeesRows(Attention):
    """Takes the mean over its batch away when it is scored."""

    Options = AttentionOptions

    def forward(self, hidden_states: Tensor, context=None):  # type: ignore[override]
        out = super().forward(hidden_states, context)
        return out if self.training else out - 0.5 * out.mean(0, keepdim=True)


@MIXERS.register("sees_ahead_in_batches")
class SeesAheadInBatches(Attention):
    """Mixes the next token in where there are more rows than a look takes."""

    Options = AttentionOptions

    def forward(self, hidden_states: Tensor, context=None):  # type: ignore[override]
        ahead = hidden_states.roll(-1, 1) if len(hidden_states) > 10 else 0.0
        return super().forward(hidden_states + ahead, context)


@MIXERS.register("learns_when_scored")
class LearnsWhenScored(Attention):
    """Keeps something of every row in evaluation mode, by a way that torch does not count."""

    Options = AttentionOptions

    def forward(self, hidden_states: Tensor, context=None):  # type: ignore[override]
        if not self.training:
            for parameter in self.parameters():
                parameter.data.add_(0.01 * hidden_states.mean())
        return super().forward(hidden_states, context)


def look(name: str, row: Tensor = ROW, **overrides: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    batch = torch.randint(3, 60, (12, 32))
    found = LastLook(AutoModelForCausalLM.from_config(hf_arch.tiny_config(name, **overrides)), row, batch)
    return {**found.facts(), **found.of_a_batch()}


@pytest.mark.parametrize("name", ["llama", "gla", "mamba", "moe"])
@pytest.mark.parametrize("length", [1, 2, 32])
def test_a_causal_model_leaves_rounding_alone(name: str, length: int) -> None:
    found = look(name, ROW[:, :length])
    assert found["later_tokens"] < 1e-4 and found["scoring_drift"] == 0.0
    assert found["other_rows"] < 1e-5 and found["batch_gap"] < 1e-5


def test_one_token_ahead_is_seen_and_so_is_what_scoring_changes() -> None:
    assert look("llama", mixer="sees_ahead")["later_tokens"] > 0.1
    assert look("llama", mixer="learns_when_scored")["scoring_drift"] > 0.01


def test_other_rows_of_a_batch_are_seen() -> None:
    found = look("llama", mixer="sees_the_batch")
    assert found["other_rows"] > 0.01 and found["later_tokens"] < 1e-4 and found["scoring_drift"] == 0.0


def test_rows_that_are_scored_otherwise_than_looked_at_are_seen() -> None:
    found = look("llama", mixer="sees_ahead_in_batches", initializer_range=1.0)
    assert found["later_tokens"] < 1e-4 and found["other_rows"] < 1e-4 and found["batch_gap"] > 0.01


def test_blocks_longer_than_a_short_row_are_seen() -> None:
    row = torch.arange(200)[None] % 60
    assert look("llama", row[:, :64], mixer="sees_blocks")["later_tokens"] < 1e-4
    assert look("llama", row, mixer="sees_blocks")["later_tokens"] > 0.01
    assert look("gla", row)["later_tokens"] < 1e-4


def test_it_leaves_no_trace() -> None:
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("gla")).train()
    weights, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    LastLook(model, ROW).facts()
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_run_records_it(text: Path, tmp_path: Path) -> None:
    with separate_plugins():
        values = recipe_values(text, model={"mixer": "sees_ahead"}, evaluation={"speed": False, "new_tokens": 1})
        values["training"]["max_steps"] = 2
        run_training(Recipe.from_dict(values), tmp_path / "run", quiet=True)
    record = RunRecord.load(tmp_path / "run")
    assert (record.later_tokens or 0) > 0.01 and record.scoring_drift == 0.0
