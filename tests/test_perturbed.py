"""Copies of a perturbed model are what building one more would give, and share nothing with each other."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

import hf_arch
from hf_arch.perturbed import PerturbedModels, _Copies

IDS = torch.arange(3, 12)[None]


@pytest.mark.parametrize("name", ["llama", "moe", "mixed"])
@torch.no_grad()
def test_a_copy_is_the_model_built_once_more_and_is_nobody_elses(name: str) -> None:
    models = PerturbedModels(hf_arch.tiny_config(name, tie_word_embeddings=True), seed=5)
    built, drawn = models.built(), torch.rand(3)
    for _ in range(2):
        model = models.copied()
        assert torch.equal(torch.rand(3), drawn)
        assert model.lm_head.weight is model.get_input_embeddings().weight
        assert model.config.to_dict() == built.config.to_dict() and not model.training
        assert torch.equal(model(IDS).logits, built(IDS).logits)
        for parameter in model.parameters():
            parameter.zero_()
        model.config.hidden_size = 1


class Held(nn.Module):
    """Keeps what pickle refuses and deepcopy takes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.ours = lambda: 1


def test_what_cannot_be_pickled_is_copied_too() -> None:
    original = Held()
    copies = _Copies(original)
    first, second = copies.another(), copies.another()
    assert first.ours is original.ours and torch.equal(first.weight, original.weight)
    assert len({each.weight.data_ptr() for each in (original, first, second)}) == 3
    original.lock = threading.Lock()  # type: ignore[assignment]
    for attempt in (_Copies(original).another, lambda: copy.deepcopy(original)):
        with pytest.raises(TypeError, match="lock"):
            attempt()
