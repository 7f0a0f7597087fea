"""Random numbers, what is saved, and whose modules are looked at."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_arch.training.surroundings import random_states, saved_otherwise


@pytest.mark.parametrize(
    ("generator", "seed"), [("torch", torch.manual_seed), ("numpy", np.random.seed), ("python", random.seed)]
)
def test_a_seed_on_the_way_gives_two_runs_the_same_end(generator: str, seed: object) -> None:
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    ends = []
    for number in (1, 2):
        torch.manual_seed(number)
        np.random.seed(number)
        random.seed(number)
        seed(0)  # type: ignore[operator]
        ends.append(random_states())
    torch.set_rng_state(torch_state)
    np.random.set_state(numpy_state)
    random.setstate(python_state)
    first, second = ends
    assert {name for name in first if first[name] == second[name] and name != "cuda"} == {generator}


def test_what_is_saved_is_held_against_the_model(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert saved_otherwise(model, tmp_path) == 0
    save_file({**model.state_dict(), "weight": 2 * model.weight.detach()}, tmp_path / "model.safetensors")
    assert saved_otherwise(model, tmp_path) == 6
