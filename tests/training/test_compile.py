"""torch.compile takes each block whole, for all lengths: a graph break would cost a return to Python in every layer.

The backends of all tests but the last compile nothing: how a graph is found does not depend on them. What inductor
makes of whole models is checked in tests/suite/test_training.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hf_arch
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import read_metrics
from hf_arch.training.run import run_training
from tests.suite.models import perturbed_model, token_ids
from tests.training.tiny import recipe_values

ARCHITECTURES = hf_arch.list_architectures()
# Their documents become rows or blocks of their own, as many as the batch holds.
BREAKS_AT_DOCUMENTS = {"linformer", "ssm"}


def tiny_model(name: str) -> Any:
    return perturbed_model(name, embedding_dropout=0.0, residual_dropout=0.0, attention_dropout=0.0).train()


def loss_and_gradients(model: Any, ids: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, ...]:
    loss = model(ids, labels=ids, use_cache=False, **inputs).loss
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return loss, *torch.autograd.grad(loss, parameters)


def documents(length: int) -> torch.Tensor:
    """Positions [2, length] of rows packed with documents of 30 and fewer tokens."""
    return (torch.arange(length) % torch.tensor([[30], [17]])).clone()


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["row", "documents"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_block_compiles_to_one_graph(name: str, packed: bool) -> None:
    """`fullgraph` raises at a break; `aot_eager` traces the gradients too."""
    if packed and name in BREAKS_AT_DOCUMENTS:
        pytest.skip("how many rows or blocks its documents fill depends on the data")
    torch._dynamo.reset()
    model, ids = tiny_model(name), token_ids(2, 72)
    inputs = {"position_ids": documents(72)} if packed else {}
    expected = loss_and_gradients(model, ids, **inputs)
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(loss_and_gradients(model, ids, **inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_model_is_one_graph_for_all_lengths_but_the_first(name: str) -> None:
    torch._dynamo.reset()
    model, graphs = tiny_model(name), []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=count, fullgraph=True)
    made = []
    for length in (72, 104, 136):
        ids = token_ids(2, length)
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
        made.append(len(graphs))
    assert made[2] == made[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_generation_by_a_compiled_model(name: str) -> None:
    torch._dynamo.reset()
    model, prompt = tiny_model(name).eval(), token_ids(2, 40)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    expected = model.generate(prompt, **options)
    model.forward = torch.compile(model.forward, backend="eager")
    assert torch.equal(model.generate(prompt, **options), expected)


@pytest.mark.slow
def test_training_a_compiled_model_changes_nothing(text: Path, tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        torch._dynamo.reset()
        changes = {"model": {"architecture": "gla"}, "training": {"torch_compile": compiled}}
        folder = tmp_path / str(compiled)
        run_training(Recipe.from_dict(recipe_values(text, **changes)), folder, quiet=True)
        losses.append([row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row])
        assert (folder / "model" / "config.json").exists()
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
