"""muP and CompleteP: nothing changes at the base size, the table's factors elsewhere, and training follows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.cli import app
from hf_arch.coordinate_check import coordinate_check
from hf_arch.core.errors import ConfigError
from hf_arch.optimizers.base import OptimizerSettings
from hf_arch.optimizers.parameters import trained_parameters
from hf_arch.optimizers.trainer_names import TrainerOptimizer
from hf_arch.recipe.recipe import Recipe
from tests.training.test_run import train
from tests.training.tiny import recipe_values, write_text

IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))


def model_of(parametrization: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = hf_arch.tiny_config("llama", parametrization=parametrization, **changes)
    return AutoModelForCausalLM.from_config(config).eval()


def groups_of(model: Any) -> dict[str, dict[str, float]]:
    decayed = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    settings = OptimizerSettings(1.0, 1.0, eps=1.0)
    groups = TrainerOptimizer(None).groups(trained_parameters(model, decayed), settings)
    assert groups[0]["lr"] == 1.0
    of = {id(p): group for group in groups for p in group["params"]}
    return {
        name: {key: of[id(p)][key] for key in ("lr", "weight_decay", "eps")} for name, p in model.named_parameters()
    }


@pytest.mark.parametrize(
    "parametrization", [{"type": "mup", "base_width": 32}, {"type": "completep", "base_width": 32, "base_depth": 2}]
)
def test_at_the_base_size_nothing_changes(parametrization: dict[str, Any]):
    plain, scaled = model_of("standard"), model_of({**parametrization, "base_head_dim": 8})
    assert torch.equal(plain(IDS).logits, scaled(IDS).logits)
    for factors in groups_of(scaled).values():
        assert factors["lr"] == 1 and factors["eps"] == 1 and factors["weight_decay"] in (0, 1)


def test_the_table_of_completep():
    """Width 4, depth 2, alpha 1 over the base: the table of arXiv 2505.01618's branch."""
    wide = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4}
    given = {"type": "completep", "base_width": 16, "base_depth": 2, "base_head_dim": 4, "input": 3.0, "output": 5.0}
    model = model_of(given, **wide)
    factors = groups_of(model)
    assert factors["model.embed_tokens.weight"] == {"lr": 1, "weight_decay": 1, "eps": 1 / 4}
    assert factors["lm_head.weight"] == {"lr": 1, "weight_decay": 1, "eps": 1 / 4}
    assert factors["model.norm.weight"] == {"lr": 1, "weight_decay": 0, "eps": 1 / 4}
    matrix = {"lr": 1 / 4, "weight_decay": 4, "eps": 1 / 8}
    assert factors["model.layers.3.mixer.q_proj.weight"] == matrix
    assert factors["model.layers.0.mixer_norm.weight"] == {"lr": 1, "weight_decay": 0, "eps": 1 / 8}
    half = groups_of(model_of({**given, "alpha": 0.5}, **wide))
    assert half["model.layers.0.mixer_norm.weight"]["lr"] == 2**-0.5
    assert half["model.layers.0.ffn.up_proj.weight"]["lr"] == 2**-0.5 / 4
    layer = model.model.layers[0]
    assert layer.residual_multiplier == 1 / 2
    assert layer.mixer.product.scaling == 4**0.5 / 16
    assert layer.ffn.down_proj.weight.std().item() == pytest.approx(0.02 / 2, rel=0.1)
    assert model.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.1)
    with torch.no_grad():
        hidden = model.model(IDS).last_hidden_state
        torch.testing.assert_close(model(IDS).logits, 5 / 4 * nn.functional.linear(hidden, model.lm_head.weight))


@pytest.mark.rest
def test_training_moves_activations_alike_at_every_width_under_mup_alone():
    widths = (64, 512)
    assert all(result.passed for result in coordinate_check("gla", {}, widths))
    assert not all(r.passed for r in coordinate_check("gla", {"parametrization": "standard"}, widths))


def test_the_command_checks_coordinates(capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hf_arch.coordinate_check.STEPS", 2)
    with pytest.raises(SystemExit) as end:
        app(["check", "llama", "--coordinates", "--json"])
    rows = json.loads(capsys.readouterr().out)["llama"]
    assert end.value.code in (0, 1) and [row["name"] for row in rows][-1] == "logits"
    with pytest.raises(SystemExit) as end:
        app(["check", "some.py", "--coordinates"])
    assert end.value.code == 2


def test_a_run_follows_the_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[Any] = []
    original = torch.optim.AdamW.__init__

    def recording(self: Any, params: Any, *args: Any, **kwargs: Any) -> None:
        original(self, params, *args, **kwargs)
        made.append([(group["lr"], group["weight_decay"]) for group in self.param_groups])

    monkeypatch.setattr(torch.optim.AdamW, "__init__", recording)
    model = {"parametrization": {"type": "completep", "base_width": 8, "base_depth": 2}}
    values = recipe_values(write_text(tmp_path), model=model, training={"max_steps": 2, "weight_decay": 0.1})
    train(Recipe.from_dict(values), tmp_path / "run")
    assert {(0.005, 0.1), (0.005, 0.0), (0.005 / 4, 0.1 * 4)} <= set(made[0])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(row["learning_rate"] for row in rows if "learning_rate" in row) <= 0.005


def test_what_does_not_follow_it_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="rescale_residual_init: True is not part of parametrization mup"):
        hf_arch.tiny_config("llama", parametrization="mup", rescale_residual_init=True)
    with pytest.raises(ConfigError, match="parametrization mup base_width: 0 is not allowed"):
        hf_arch.tiny_config("llama", parametrization={"type": "mup", "base_width": 0})
    values = recipe_values(write_text(tmp_path), model={"parametrization": "mup"}, training={"optim": "muon"})
    with pytest.raises(ConfigError, match=r"training.optim: 'muon' does not follow parametrization mup"):
        train(Recipe.from_dict(values), tmp_path / "run")
