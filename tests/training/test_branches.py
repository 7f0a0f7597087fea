"""What sublayers write at initialisation is measured as it is, and made equal to another model's by one factor each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.training.branches import largest_gap, measure_branches, solve_branches

IDS = torch.arange(3, 35).reshape(2, 16)
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}


def model(name: str, seed: int = 0, **values: object):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(hf_arch.config_from_dict({"architecture": name, **SIZES, **values})).eval()


def test_the_ratio_is_that_of_the_modules() -> None:
    llama = model("llama")
    seen: dict[str, torch.Tensor] = {}
    layer = llama.model.layers[0]
    layer.register_forward_pre_hook(lambda _module, args: seen.__setitem__("x", args[0]))
    layer.mixer.register_forward_hook(lambda _module, _args, out: seen.__setitem__("out", out))
    found = measure_branches(llama, IDS)
    out = seen["out"] if isinstance(seen["out"], torch.Tensor) else seen["out"].hidden_states
    expected = (out.pow(2).mean().sqrt() / seen["x"].pow(2).mean().sqrt()).item()
    assert found[0]["mixer"] == pytest.approx(expected, rel=1e-5)
    assert [set(layer) for layer in found] == [{"mixer", "ffn"}] * 3


@pytest.mark.parametrize("values", [{}, {"norm_position": "sandwich"}, {"residual_multiplier": 0.3}])
def test_solved_scales_give_the_other_models_ratios_and_are_saved(values: dict[str, object], tmp_path: Path) -> None:
    target = measure_branches(model("gla", **values), IDS)
    own = model("gated_delta_net", **values)
    assert largest_gap(measure_branches(own, IDS), target) > 1.2
    scales = solve_branches(own, IDS, target)
    equal = model("gated_delta_net", **values, branch_scales=scales)
    assert largest_gap(measure_branches(equal, IDS), target) < 1.002
    equal.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.branch_scales == scales
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, equal(IDS).logits)
        assert not torch.equal(own(IDS).logits, equal(IDS).logits)


@pytest.mark.parametrize("scales", [[[1.0, 1.0]], [[1.0]] * 3, [[1.0, -1.0]] * 3, [[1.0, "a"]] * 3, [1.0, 1.0, 1.0]])
def test_wrong_scales_are_one_line(scales: list) -> None:
    with pytest.raises(ConfigError, match="branch_scales: "):
        model("llama", branch_scales=scales)


def test_layers_that_differ_in_number_cannot_be_made_equal() -> None:
    target = measure_branches(model("llama", num_hidden_layers=2), IDS)
    assert largest_gap(measure_branches(model("llama"), IDS), target) == float("inf")
    with pytest.raises(ConfigError, match="3 layers cannot be given the scales of 2"):
        solve_branches(model("llama"), IDS, target)
