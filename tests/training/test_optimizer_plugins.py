"""An optimiser from a plugin file: trained with, resumed bit-equal, kept by its run; and what is refused, in a line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.core.plugins import separate_plugins
from hf_arch.core.registry import OPTIMIZERS, load_plugin
from hf_arch.optimizers.base import OptimizerSettings
from hf_arch.optimizers.choose import build_optimizer, choose_optimizer
from hf_arch.optimizers.parameters import trained_parameters
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import read_metrics
from hf_arch.training.run import run_training
from tests.training.tiny import recipe_values

LION = Path(__file__).parents[1] / "ideas" / "lion.py"
QUICK = {"speed": False, "new_tokens": 1}

BROKEN = """
import torch
from hf_arch.core.registry import OPTIMIZERS
from hf_arch.optimizers.base import OptimizerBuilder


@OPTIMIZERS.register("broken_of_mine")
class Broken(OptimizerBuilder):
    def build(self, parameters, settings):
        every = [entry.parameter for entry in parameters]
        {body}
"""


@pytest.fixture(autouse=True)
def own_registries():
    with separate_plugins():
        yield


def recipe(text: Path, plugin: Path = LION, optim: str = "idea_lion", **training: Any) -> Recipe:
    return Recipe.from_dict(
        recipe_values(text, model={"plugins": [str(plugin)]}, training={"optim": optim, **training}, evaluation=QUICK)
    )


def losses(folder: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row}


@pytest.mark.rest
def test_a_resumed_run_is_equal_and_the_run_keeps_the_code(text: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 0.002, "optim_args": {"beta1": 0.8}}
    whole = run_training(recipe(text, **settings), tmp_path / "whole", quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part" / "results.json").unlink()
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "checkpoint-6")
    part = run_training(recipe(text, **settings), tmp_path / "part", resume=True, quiet=True)
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    assert part["final_val_loss"] == whole["final_val_loss"]
    assert losses(tmp_path / "whole")[6] < losses(tmp_path / "whole")[1] - 0.1
    assert whole["optimizer"]["class"] == "LionSteps" and whole["provenance"]["plugins"].keys() == {"lion.py"}
    assert (tmp_path / "whole" / "plugins" / "lion.py").read_text() == LION.read_text()
    with pytest.raises(ConfigError, match=r"training\.optim_args\.beta1 is not set, was 0\.8"):
        run_training(recipe(text, learning_rate=0.002), tmp_path / "part", resume=True, quiet=True)


def test_options_are_strict(text: Path) -> None:
    for given, expected in (
        ({"beta3": 0.9}, "training.optim_args: unknown key 'beta3'; nearest: 'beta"),
        ({"beta1": "high"}, "training.optim_args: beta1: 'high' is not allowed; expected"),
        ("beta1", "training.optim_args: 'beta1' is not of the form key=value"),
    ):
        with pytest.raises(ConfigError, match=expected.replace(".", r"\.")):
            recipe(text, optim_args=given)
    with pytest.raises(ConfigError, match=r"training\.optim: 'idea_lyon' is not known; nearest: 'idea_lion'"):
        recipe(text, optim="idea_lyon")


def built(name: str, model: Any, options: Any = None, **settings: Any) -> Any:
    values = {"learning_rate": 1e-3, "weight_decay": 0.1, **settings}
    builder = choose_optimizer({"optim": name, "optim_args": options})
    return build_optimizer(builder, trained_parameters(model), OptimizerSettings(**values))


@pytest.mark.parametrize("name", ["mamba2", "rwkv7", "moe", "gpt2"])
def test_exemptions_and_layerwise_rates_hold(name: str) -> None:
    load_plugin(LION)
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name))
    optimizer = built("idea_lion", model, {"layer_decay": 0.5})
    of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for entry in trained_parameters(model):
        group = of.pop(id(entry.parameter))
        assert group["weight_decay"] == (0.1 if entry.decays else 0.0)
        assert group["lr"] == pytest.approx(1e-3 * 0.5 ** (entry.layer or 0))
    assert not of and optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return [every]", "build returned list, expected a torch.optim.Optimizer"),
        ("return torch.optim.SGD(every[1:], lr=0.1)", "embed_tokens.weight would not be trained"),
        ("return torch.optim.SGD(every[:-2], lr=0.1)", "and 1 more would not be trained"),
        (
            "return torch.optim.SGD([*every, torch.nn.Parameter(torch.ones(3))], lr=0.1)",
            "shape [3] that is not a trainable parameter",
        ),
        ("return torch.optim.SGD([{'params': every[:2]}, {'params': every[1:]}], lr=0.1)", "line 11: ValueError: some"),
        ("return torch.optim.AdamW(every, weight_decay=0.1)", "norm.weight has weight decay 0.1, but it is exempt"),
        ("return torch.optim.SGD(every, lr=float('nan'))", "a group has the learning rate nan"),
        ("return 1 / 0", "line 11: ZeroDivisionError: division by zero"),
        ("raise NotImplementedError", "line 11: NotImplementedError"),
    ],
)
def test_a_wrong_optimiser_is_one_line_before_anything_is_written(
    body: str, expected: str, text: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(BROKEN.replace("{body}", body))
    with pytest.raises(ConfigError) as caught:
        run_training(recipe(text, plugin, "broken_of_mine"), tmp_path / "run", quiet=True)
    said = str(caught.value)
    assert said.startswith("training.optim: 'broken_of_mine': ") and expected in said and "\n" not in said
    assert not (tmp_path / "run").exists()


def test_parametrisations_are_followed_or_refused(text: Path, tmp_path: Path) -> None:
    mup = {"parametrization": {"type": "mup", "base_width": 8}}
    values = recipe_values(text, model={**mup, "plugins": [str(LION)]}, training={"optim": "idea_lion"})
    with pytest.raises(ConfigError, match="'idea_lion' does not follow parametrization mup"):
        run_training(Recipe.from_dict(values), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    follows = tmp_path / "follows.py"
    follows.write_text(
        LION.read_text()
        .replace("idea_lion", "follows")
        .replace("    Options = Lion", "    follows_parametrization = True\n    Options = Lion")
    )
    load_plugin(follows)
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("llama", **mup))
    rates = {
        name: group["lr"]
        for group in built("follows", model).param_groups
        for name, parameter in model.named_parameters()
        if any(parameter is other for other in group["params"])
    }
    width = model.config.hidden_size / 8
    assert rates["model.embed_tokens.weight"] == 1e-3
    assert rates["model.layers.0.mixer.q_proj.weight"] == pytest.approx(1e-3 / width)
    with pytest.raises(ConfigError, match="its parametrization asks for"):
        built("follows", model, {"layer_decay": 0.5})


@pytest.mark.parametrize(
    ("environment", "training", "expected"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "training.optim: 'idea_lion' needs whole parameters"),
        ({}, {"zero_redundancy": True}, "one process"),
    ],
)
def test_shards_are_refused(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: Any, training: Any, expected: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=expected):
        run_training(recipe(text, **training), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_names_are_taken_once(tmp_path: Path) -> None:
    load_plugin(LION)
    for name, optim, expected in (
        ("adamw.py", "adamw_torch", "optimizer: 'adamw_torch' is registered already"),
        ("second.py", "idea_lion", "optimizer: 'idea_lion' is registered already by plugin lion.py"),
    ):
        (tmp_path / name).write_text(LION.read_text().replace("idea_lion", optim))
        with pytest.raises(ConfigError, match=expected):
            load_plugin(tmp_path / name)
    (tmp_path / "kind.py").write_text(
        "from hf_arch.core.registry import OPTIMIZERS\n\n\n@OPTIMIZERS.register('bare')\ndef bare(): ...\n"
    )
    with pytest.raises(
        ConfigError, match=r"optimizer: 'bare' is bare, which is not a subclass of hf_arch\.optimizers\.base\.O"
    ):
        load_plugin(tmp_path / "kind.py")
    assert "bare" not in OPTIMIZERS


def test_only_runs_that_use_it_depend_on_it(text: Path, tmp_path: Path) -> None:
    def hashes(code: str) -> tuple[str, str]:
        plugin = tmp_path / "lion.py"
        plugin.write_text(code)
        with separate_plugins():
            using = recipe(text, plugin).stable_hash()
            values = recipe_values(text, model={"plugins": [str(plugin)]}, evaluation=QUICK)
            return using, Recipe.from_dict(values).stable_hash()

    before, after = hashes(LION.read_text()), hashes(LION.read_text() + "\n# another version\n")
    assert before[0] != after[0] and before[1] == after[1]
