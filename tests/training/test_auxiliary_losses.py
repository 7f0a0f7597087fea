"""Auxiliary losses train the model, are logged by name, and are no part of the loss that runs are compared by."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.layers.contract import LayerContext
from hf_arch.models.losses.base import loss_names
from hf_arch.recipe.recipe import Recipe
from hf_arch.training.tasks.probe import ProbeTask

from .test_run import train
from .tiny import recipe_values, write_text

IDS = torch.randint(3, 97, (4, 9), generator=torch.Generator().manual_seed(0))
LOSSES = ["z_loss", {"type": "multi_token", "coefficient": 0.5}]


def model_of(**changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(hf_arch.tiny_config("llama", losses=LOSSES, **changes))


@pytest.mark.parametrize("chunk", [0, 5])
def test_the_loss_in_training_is_that_of_the_next_token_and_the_others(chunk: int):
    model = model_of(loss_chunk_size=chunk)
    plain = model.eval()(IDS, labels=IDS)
    assert not model.auxiliary_losses
    trained = model.train()(IDS, labels=IDS)
    assert set(model.auxiliary_losses) == {"z_loss", "multi_token"}
    torch.testing.assert_close(trained.loss, plain.loss + sum(model.auxiliary_losses.values()))
    z = 1e-4 * torch.logsumexp(plain.logits[:, :-1], -1).square().mean()
    torch.testing.assert_close(model.auxiliary_losses["z_loss"], z)


@pytest.mark.parametrize("chunk", [0, 5])
def test_several_calls_of_a_step_are_one(chunk: int):
    def gradients(parts: int) -> list[torch.Tensor]:
        model = model_of(loss_chunk_size=chunk).train()
        for part in IDS.chunk(parts):
            model(part, labels=part, num_items_in_batch=4 * 8).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    torch.testing.assert_close(gradients(4), gradients(1), rtol=1e-4, atol=1e-6)


def test_multi_token_prediction_is_its_formula():
    model = model_of().train()
    model(IDS, labels=IDS)
    loss, (step,) = model.losses[1], model.losses[1].steps
    hidden = model.model(IDS).last_hidden_state
    embedded = model.model.embed_tokens(torch.nn.functional.pad(IDS[:, 1:], (0, 1)))
    joined = step.proj(torch.cat([step.embedding_norm(embedded), step.hidden_norm(hidden)], -1))
    rotary = model.model.rotary_embs[0](joined, torch.arange(9)[None])
    x = joined + step.block.mixer(step.block.mixer_norm(joined), context=LayerContext(position_embeddings=rotary))
    x = x + step.block.ffn(step.block.ffn_norm(x))
    logits = model.lm_head(step.post_norm(x))
    # At position t it predicts the token after the next.
    expected = torch.nn.functional.cross_entropy(logits[:, :-2].flatten(0, 1), IDS[:, 2:].flatten(), reduction="sum")
    torch.testing.assert_close(model.auxiliary_losses["multi_token"], loss.options.coefficient * expected / (4 * 8))


def test_documents_are_kept_apart():
    model = model_of().train()
    row, positions = IDS[:2].reshape(1, -1), torch.arange(9).repeat(2)[None]
    labels = row.clone()
    labels[:, 9] = -100  # the first token of the second document is no target
    model(row, labels=labels, position_ids=positions)
    packed = model.auxiliary_losses["multi_token"]
    model(IDS[:2], labels=IDS[:2])
    torch.testing.assert_close(packed, model.auxiliary_losses["multi_token"])


def test_names_are_told_apart():
    config = hf_arch.tiny_config("llama", losses=["z_loss", "multi_token", {"type": "z_loss", "coefficient": 1e-3}])
    assert loss_names(config) == ["z_loss", "multi_token", "z_loss_2"]


@pytest.mark.rest
def test_a_run_logs_them_by_name(tmp_path):
    losses = ["z_loss", "multi_token"]

    def rows(folder: str, **training: object) -> list[dict]:
        values = recipe_values(write_text(tmp_path), model={"losses": losses}, training=training)
        recipe = Recipe.from_dict(values)
        results = train(recipe, tmp_path / folder)
        logged = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        trained = [row for row in logged if "loss" in row]
        assert results["final_train_loss"] == trained[-1]["loss"]
        return trained

    first = rows("one")
    assert all(row["loss_multi_token"] > 0.5 and row["loss_z_loss"] > 0 for row in first)
    # A next-token loss of about log(vocabulary) at the start, without the others.
    assert first[0]["loss"] < 4.5
    again = rows("two", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    for row, other in zip(first, again, strict=True):
        for key in ("loss", "loss_multi_token", "loss_z_loss"):
            assert other[key] == pytest.approx(row[key], rel=1e-4)


def test_what_would_leave_them_out_is_refused():
    model = {"architecture": "llama", "hidden_size": 16, "num_attention_heads": 2, "losses": LOSSES}
    probe = {"task": "mqar", "options": {"examples": 4}}
    with pytest.raises(ConfigError, match=r"model\.losses: 'z_loss' has no effect on a probe"):
        ProbeTask(Recipe.from_dict({"model": model, "probe": probe}))
