"""What objects hold otherwise than when a run began."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_arch.training.held import Held, modules_of


class Louder(nn.Linear):
    pass


CHANGES = {
    "model.0.eps": lambda model, around: setattr(model[0], "eps", 1.0),
    "model.1.__class__": lambda model, around: setattr(model[1], "__class__", Louder),
    "model.1.weight": lambda model, around: setattr(model[1], "weight", nn.Parameter(torch.zeros(4, 4))),
    "model.2": lambda model, around: model.add_module("2", nn.Identity()),
    "trainer.smoother": lambda model, around: setattr(around, "smoother", object()),
    "trainer.rates": lambda model, around: around.rates.append(0.1),
    "trainer.new": lambda model, around: setattr(around, "new", 1),
    "trainer.angles": lambda model, around: setattr(around, "angles", (torch.zeros(2), torch.ones(2))),
    "trainer.kept": lambda model, around: delattr(around, "kept"),
    "": lambda model, around: (model.eval(), setattr(around, "state", 3), around.tensors.append(torch.ones(1))),
}
"""{what is named: what was done}; the last is what an honest run does."""


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_another_now_is_named(name: str) -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    around = SimpleNamespace(smoother=None, rates=[0.1], kept=(1, 2), state=1, tensors=[torch.zeros(1)])
    around.angles, around.none = (torch.zeros(2), torch.ones(2)), float("nan")  # what cannot be compared
    held = Held({"trainer": around, **modules_of(model)})
    assert held.changes() == []
    CHANGES[name](model, around)
    assert held.changes() == ([name] if name else [])
