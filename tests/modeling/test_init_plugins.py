"""An initialisation policy from a plugin file: named draws, what was loaded, scaling of residuals, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.core.plugins import separate_plugins
from hf_arch.core.registry import load_plugin
from hf_arch.layers.initial import residual_branches

ORTHOGONAL = Path(__file__).parents[1] / "ideas" / "orthogonal.py"
BROKEN = """
import torch
from hf_arch.core.registry import INITS
from hf_arch.models.init_policy import InitPolicy


@INITS.register("broken_of_mine")
class Broken(InitPolicy):
    def init_parameter(self, parameter, role, name):
        {body}
"""


@pytest.fixture(autouse=True)
def plugin():
    with separate_plugins():
        load_plugin(ORTHOGONAL)
        yield


def build(name: str, seed: int = 0, **values: Any) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(hf_arch.tiny_config(name, **values))


@pytest.mark.parametrize("name", hf_arch.list_architectures())
def test_matrices_are_orthogonal_and_the_rest_is_as_it_was(name: str) -> None:
    model, plain = (build(name, init=init) for init in ({"type": "idea_orthogonal", "gain": 2.0}, None))
    others = dict(plain.named_parameters())
    head = model.get_output_embeddings()
    matrices = {
        f"{prefix}.weight"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and ".layers." in f".{prefix}"
    }
    assert matrices
    scaled = residual_branches(model.config) ** -0.5 if model.config.rescale_residual_init else 1.0
    for key, parameter in model.named_parameters():
        if key not in matrices:
            assert torch.equal(parameter, others[key]), key
            continue
        values = torch.linalg.svdvals(parameter.detach())
        factor = scaled if key.split(".")[-2] in ("o_proj", "down_proj", "out_proj") else 1.0
        torch.testing.assert_close(values, torch.full_like(values, 2 * factor), rtol=1e-4, atol=1e-5, msg=key)


def test_draws_are_named() -> None:
    first = build("llama", init="idea_orthogonal", num_hidden_layers=2).state_dict()
    more = build("llama", init="idea_orthogonal", num_hidden_layers=3, mixer=["attention", "gla", "attention"])
    other = build("llama", seed=1, init="idea_orthogonal", num_hidden_layers=2).state_dict()
    for key, value in first.items():
        if ".layers.0." in key and value.ndim == 2:
            assert torch.equal(value, more.state_dict()[key]) and not torch.equal(value, other[key]), key


def test_what_a_policy_draws_freely_is_named_too(tmp_path: Path) -> None:
    """`torch.randn` belongs to the parameter that is asked for; a rule that multiplies what is there does so once."""
    (tmp_path / "free.py").write_text(
        BROKEN.replace("{body}", "parameter.mul_(3).add_(torch.randn(parameter.shape) * (role == 'matrix'))")
    )
    load_plugin(tmp_path / "free.py")
    small = build("llama", init="broken_of_mine", num_hidden_layers=1).state_dict()
    large = build("llama", init="broken_of_mine", num_hidden_layers=2).state_dict()
    plain = build("llama", num_hidden_layers=1).state_dict()
    for key, value in small.items():
        assert torch.equal(value, large[key]), key
    torch.testing.assert_close(small["model.embed_tokens.weight"], 3 * plain["model.embed_tokens.weight"])


def test_what_was_loaded_stays(tmp_path: Path) -> None:
    model = build("gpt2", init={"type": "idea_orthogonal", "gain": 0.5})
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.init == {"type": "idea_orthogonal", "gain": 0.5}
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert hf_arch.describe(model.config)[1] and "orthogonal (gain=0.5" in str(hf_arch.describe(model.config)[1])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return torch.randn(parameter.shape)", "init_parameter returned Tensor; change the parameter in place"),
        ("parameter.fill_(float('nan'))", "contains numbers that are not finite"),
        ("parameter.data = torch.ones(3)", "has the shape [3] now; expected"),
        ("torch.nn.init.orthogonal_(parameter)", "line 10: ValueError: Only tensors with 2 or more dimensions"),
        ("parameter.fill_(1 / 0)", "line 10: ZeroDivisionError: division by zero"),
    ],
)
def test_a_wrong_policy_is_one_line(body: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN.replace("{body}", body))
    load_plugin(tmp_path / "broken.py")
    with pytest.raises(ConfigError) as caught:
        build("llama", init="broken_of_mine")
    said = str(caught.value)
    assert said.startswith("init: 'broken_of_mine': ") and expected in said and "\n" not in said


def test_names_and_options_are_strict(tmp_path: Path) -> None:
    for init, expected in (
        ("idea_orthogonl", r"init: 'idea_orthogonl' is not known; nearest: 'idea_orthogonal'"),
        ({"type": "idea_orthogonal", "gian": 1}, r"unknown key 'gian'"),
        ({"type": "idea_orthogonal", "gain": "big"}, r"gain: 'big' is not allowed"),
        ({"type": "official"}, r"init: 'official' is not known"),
    ):
        with pytest.raises(ConfigError, match=expected):
            hf_arch.tiny_config("llama", init=init)
    assert hf_arch.tiny_config("mamba", init={"type": "official"}).init == "official"
    with pytest.raises(ConfigError, match="'idea_orthogonal' is not supported with parametrization mup"):
        hf_arch.tiny_config("llama", init="idea_orthogonal", parametrization="mup")
    (tmp_path / "taken.py").write_text(ORTHOGONAL.read_text().replace("idea_orthogonal", "official"))
    with pytest.raises(ConfigError, match="init: 'official' is registered already"):
        load_plugin(tmp_path / "taken.py")
