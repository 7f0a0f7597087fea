"""Where flash-linear-attention is wrong and a port would be too: the right behaviour of the same options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import DynamicCache

import hf_arch
from hf_arch.core.errors import ConfigError
from tests.suite.models import close, perturbed_model, token_ids

GOLDEN = Path(__file__).parents[1] / "golden" / "fla"


def _foreign(name: str, **changes: Any) -> tuple[Any, dict[str, Tensor]]:
    """A fixture's model with options changed, and its tensors."""
    path = GOLDEN / f"{name}.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    config = {**json.loads(metadata["config"]), "model_type": metadata["model_type"], **changes}
    state = {key.removeprefix("state/"): x for key, x in tensors.items() if key.startswith("state/")}
    return hf_arch.from_foreign(config, state), tensors


def _steps(model: Any, ids: Tensor, first: int) -> Tensor:
    cache = DynamicCache(config=model.config)
    parts = [first] + [1] * (ids.shape[1] - first)
    return torch.cat([model(part, past_key_values=cache).logits for part in ids.split(parts, 1)], 1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["forgetting_transformer__base", "moba__base"])
def test_a_window_that_only_cuts_their_cache_changes_nothing(name: str) -> None:
    model, tensors = _foreign(name, window_size=5)
    ids = tensors["input_ids"]
    close(model(ids, use_cache=False).logits, tensors["logits"], 2e-5)
    close(_steps(model, ids, 9), tensors["logits"], 2e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["path_attn__base", "path_attn__gqa_forget_fullrank"])
def test_path_needs_no_mask_to_decode_and_no_cache_for_padding(name: str) -> None:
    model, tensors = _foreign(name)
    close(_steps(model, tensors["input_ids"], 9), tensors["logits"], 2e-5)
    mask = tensors["padded/attention_mask"]
    padded = model(tensors["padded/input_ids"], attention_mask=mask, use_cache=False).logits
    close(padded[mask.bool()], tensors["padded/logits"][mask.bool()], 2e-5)


@torch.no_grad()
def test_path_over_several_chunks_equals_the_steps() -> None:
    model, ids = perturbed_model("path_attention", max_position_embeddings=256), token_ids(1, 150)
    close(_steps(model, ids, 70), model(ids, use_cache=False).logits, 2e-5)


@torch.no_grad()
@pytest.mark.parametrize("counts", [3, 5, 6])
def test_nsa_takes_any_number_of_blocks_from_three(counts: int) -> None:
    mixer = {"type": "nsa", "block_size": 3, "window": 4}
    ids = token_ids(1, 30)
    logits = {n: perturbed_model("nsa", mixer={**mixer, "block_counts": n})(ids).logits for n in (counts, counts + 1)}
    assert torch.equal(logits[counts][:, : 3 * counts], logits[counts + 1][:, : 3 * counts])
    assert not torch.allclose(logits[counts], logits[counts + 1])


def test_blocks_that_their_kernel_miscounts_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"config\.block_counts: 6 is not supported by nsa"):
        _foreign("nsa__base", block_counts=6)


def test_moba_of_one_block_is_refused_where_theirs_attends_to_all() -> None:
    with pytest.raises(ConfigError, match=r"config\.moba_topk: 1 is not supported by moba"):
        _foreign("moba__base", moba_topk=1)


@torch.no_grad()
def test_moba_of_one_block_sees_its_own_alone() -> None:
    model = perturbed_model(
        "moba", mixer={"type": "moba", "block_size": 4, "topk": 1}, num_hidden_layers=1, qk_norm=False
    )
    ids = token_ids(1, 12)
    changed = ids.clone()
    changed[:, :4] = (changed[:, :4] + 1) % 97
    assert torch.equal(model(ids).logits[:, 4:], model(changed).logits[:, 4:])


@torch.no_grad()
def test_stickbreaking_gives_the_first_token_nothing() -> None:
    layer = perturbed_model("stickbreaking", attention_bias=False).model.layers[0].mixer
    x = torch.randn(2, 6, layer.config.hidden_size)
    out = layer(x)
    assert out[:, 0].abs().max() == 0 and out[:, 1].abs().max() > 0
