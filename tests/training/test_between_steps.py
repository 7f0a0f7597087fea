"""Weights that others than the optimiser change are seen, and its own steps are not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hf_arch.training.between_steps import BetweenSteps

STEPS = 8
NOTHING = {"moved": 0, "memory": 0, "swapped": 0, "rates": 1.0, "settings": {}}
Change = Callable[[nn.Linear, torch.optim.Optimizer, int], None]


def nothing(model: nn.Linear, optimizer: torch.optim.Optimizer, step: int) -> None:
    pass


def trained(
    forward: Change = nothing,
    after: Change = nothing,
    evaluated: Change = nothing,
    scored: Change = nothing,
    best: bool = False,
) -> dict[str, Any]:
    """Facts of a few steps of a model, with something done in its forward pass, after a step, in an evaluation after
    the fifth, and before the score."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    args, state = SimpleNamespace(load_best_model_at_end=best), SimpleNamespace(global_step=0, max_steps=STEPS)
    watch = BetweenSteps(model)
    of_trainer = {"optimizer": optimizer, "lr_scheduler": scheduler}
    watch.on_train_begin(args, state, None, **of_trainer)
    for step in range(STEPS):
        forward(model, optimizer, step)
        model(torch.randn(2, 4)).square().sum().backward()
        watch.on_pre_optimizer_step(args, state, None, **of_trainer)
        optimizer.step()
        watch.on_optimizer_step(args, state, None, **of_trainer)
        state.global_step += 1
        control = SimpleNamespace(should_evaluate=state.global_step == 5, should_save=False)
        watch.on_step_end(args, state, control)
        if control.should_evaluate:
            evaluated(model, optimizer, step)
        scheduler.step()
        optimizer.zero_grad()
        after(model, optimizer, step)
    scored(model, optimizer, STEPS)
    return watch.facts()


def halve(model: nn.Linear, optimizer: torch.optim.Optimizer, step: int) -> None:
    model.weight.data *= 0.5


def test_the_steps_of_the_optimiser_are_not_counted() -> None:
    assert trained() == NOTHING


@pytest.mark.parametrize("where", ["forward", "after", "evaluated"])
def test_what_changes_between_steps_is_counted_once(where: str) -> None:
    assert trained(**{where: halve})["moved"] == 12


def test_what_is_put_in_place_for_the_score_is_counted() -> None:
    assert trained(scored=halve) == {**NOTHING, "swapped": 12}


def test_the_best_of_several_checkpoints_is_asked_for() -> None:
    assert trained(scored=halve, best=True)["swapped"] is None


def test_rates_past_the_schedule_are_seen() -> None:
    def more(model: nn.Linear, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.param_groups[0]["lr"] *= 4

    assert trained(forward=more)["rates"] == pytest.approx(4.0)


def test_a_step_that_no_look_at_all_weights_is_at_is_seen() -> None:
    def once(model: nn.Linear, optimizer: torch.optim.Optimizer, step: int) -> None:
        if step == 3:
            model.weight.data *= 0.5

    assert trained(forward=once) == {**NOTHING, "moved": 12}
    assert trained(forward=lambda model, optimizer, step: once(model, optimizer, 3)) == {**NOTHING, "moved": 12}


def test_memory_in_another_place_is_compared_by_its_values() -> None:
    def moved(model: nn.Linear, optimizer: torch.optim.Optimizer, step: int) -> None:
        model.weight.data = model.weight.data.clone() * (0.5 if step == 6 else 1.0)

    assert trained(forward=lambda model, optimizer, step: moved(model, optimizer, 0)) == NOTHING
    assert trained(forward=moved) == {**NOTHING, "moved": 12}


def test_what_the_optimiser_keeps_is_its_own() -> None:
    def forget(model: nn.Linear, optimizer: torch.optim.Optimizer, step: int) -> None:
        if step:  # around a quarter of the steps it is looked at
            optimizer.state[model.weight]["exp_avg"].zero_()

    assert trained(forward=forget) == {**NOTHING, "memory": 12}


def test_settings_that_hold_for_some_steps_are_seen() -> None:
    def other(model: nn.Linear, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.param_groups[0]["betas"] = (0.5, 0.9) if step == 4 else (0.9, 0.999)

    assert trained(forward=other) == {**NOTHING, "settings": {"betas of group 0": [[0.9, 0.999], [0.5, 0.9]]}}


def test_weights_that_are_a_view_are_compared_by_their_values() -> None:
    def halved(model: nn.Linear, optimizer: torch.optim.Optimizer, step: int) -> None:
        if step == 0:
            model.weight.data = model.weight.data.mT.contiguous().mT
        if step == 3:
            model.weight.data *= 0.5

    assert not trained(forward=lambda model, optimizer, step: halved(model, optimizer, min(step, 1)))["moved"]
    assert trained(forward=halved)["moved"] == 12
