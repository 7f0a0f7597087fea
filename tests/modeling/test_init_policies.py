"""Initial values by source: the official rules, refusal of unknown policies, GPT-2's scaling of residual outputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.layers.initial import residual_branches


def build(name: str, **values: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 300}
    return AutoModelForCausalLM.from_config(hf_arch.config_from_dict({"architecture": name, **sizes, **values}))


def std(weight: Tensor) -> float:
    return weight.detach().std().item()


def uniform(fan_in: float) -> float:
    """Standard deviation of torch's own rule for Linear and Conv."""
    return 1 / math.sqrt(3 * fan_in)


def test_mamba_official_divides_its_output_by_the_depth() -> None:
    for name in ("mamba", "mamba2"):
        mixer = build(name, init="official").model.layers[1].mixer
        assert std(mixer.out_proj.weight) == pytest.approx(uniform(512 * 3), rel=0.03)
        assert std(mixer.in_proj.weight) == pytest.approx(uniform(256), rel=0.03)
        assert std(mixer.conv.weight) == pytest.approx(uniform(4), rel=0.08)
    assert std(build("mamba").model.layers[1].mixer.out_proj.weight) == pytest.approx(0.02, rel=0.03)
    assert std(build("mamba2").model.layers[1].mixer.conv.weight) == pytest.approx(0.02, rel=0.08)
    with_ffn = build("mamba", init="official", ffn="glu").model.layers[1].mixer
    assert std(with_ffn.out_proj.weight) == pytest.approx(uniform(512 * 6), rel=0.03)


def test_gated_delta_net_official_leaves_convolutions_as_torch_has_them() -> None:
    official, fla = (
        build("gated_delta_net", head_dim=32, init=init).model.layers[0].mixer for init in ("official", None)
    )
    assert std(official.q_conv.weight) == pytest.approx(uniform(4), rel=0.1)
    assert std(fla.q_conv.weight) == pytest.approx(0.02, rel=0.1)
    assert torch.equal(official.q_proj.weight, fla.q_proj.weight)


def test_retnet_official_has_torchscales_gains() -> None:
    mixer = build("retnet", init="official").model.layers[0].mixer
    for linear, gain in ((mixer.q_proj, 2**-2.5), (mixer.v_proj, 2**-2.5), (mixer.g_proj, 2**-2.5), (mixer.o_proj, 1)):
        fans = sum(linear.weight.shape)
        assert std(linear.weight) == pytest.approx(gain * math.sqrt(2 / fans), rel=0.03)


def test_rwkv6_official_begins_with_memories_of_all_lengths() -> None:
    model = build("rwkv6", init="official")
    first, last = model.model.layers[0].mixer, model.model.layers[2].mixer
    decay = torch.exp(-torch.exp(first.decay_up.bias))
    assert decay[0].item() == pytest.approx(0.9975, abs=1e-4) and decay[-1].item() == pytest.approx(0.6922, abs=1e-4)
    assert (first.shift_bias.std(-1) > 0).all() and first.bonus.abs().max() > 0 and not first.o_proj.weight.any()
    assert last.bonus.flatten()[1].item() == pytest.approx(0.1 + 1 - 1 / 127, abs=1e-6)
    assert model.model.embed_tokens.weight.abs().max() <= 1e-4
    assert not model.model.layers[0].ffn.down_proj.weight.any() and (model.model.layers[0].ffn.key_mix[1:] < 1).all()
    ordinary = build("rwkv6")
    assert not ordinary.model.layers[0].mixer.decay_up.bias.any()  # every channel keeps exp(-1) of its state
    assert std(ordinary.model.embed_tokens.weight) == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize("name", hf_arch.list_architectures())
def test_every_policy_of_every_architecture_trains_and_another_is_named(name: str) -> None:
    for policy in hf_arch.tiny_config(name).inits:
        model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name, init=policy))
        ids = torch.arange(12)[None]
        loss = model(ids, labels=ids).loss
        loss.backward()
        assert loss.isfinite() and model.config.init == policy
    with pytest.raises(ConfigError, match=r"^init: 'offical'"):
        hf_arch.tiny_config(name, init="offical")


def test_a_policy_that_no_component_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'official' is not .*transformers"):
        hf_arch.tiny_config("llama", init="official")
    mixed = hf_arch.tiny_config("mixed", mixer=["mamba", "attention"], init="official")
    assert mixed.init == "official"


@pytest.mark.parametrize(
    ("name", "values", "branches"),
    [("gpt2", {}, 6), ("gpt2", {"ffn": "none"}, 3), ("llama", {}, 6), ("llama", {"ffn": ["glu", "none"]}, 5)],
)
def test_residual_outputs_are_divided_by_the_sublayers_that_exist(name: str, values: dict, branches: int) -> None:
    model = build(name, rescale_residual_init=True, **values)
    assert residual_branches(model.config) == branches
    for layer in model.model.layers:
        assert std(layer.mixer.o_proj.weight) == pytest.approx(0.02 / math.sqrt(branches), rel=0.03)
        if layer.ffn is not None:
            assert std(layer.ffn.down_proj.weight) == pytest.approx(0.02 / math.sqrt(branches), rel=0.03)


@pytest.mark.parametrize("name", ["rwkv6", "rwkv7", "mamba2", "mamba3", "mamba", "gla"])
@pytest.mark.parametrize("init", [None, "official"])
def test_an_output_with_a_rule_of_its_own_keeps_it(name: str, init: str | None) -> None:
    if init is not None and init not in hf_arch.tiny_config(name).inits:
        pytest.skip("no such policy")
    plain, scaled = (build(name, init=init, rescale_residual_init=flag) for flag in (False, True))
    for layer, other in zip(plain.model.layers, scaled.model.layers, strict=True):
        for part in ("mixer", "ffn"):
            for output in ("o_proj", "out_proj", "down_proj"):
                one, two = (getattr(getattr(block, part), output, None) for block in (layer, other))
                if not isinstance(one, nn.Linear):
                    continue
                general = std(one.weight) == pytest.approx(0.02, rel=0.03)
                if general:
                    assert std(two.weight) == pytest.approx(0.02 / math.sqrt(residual_branches(plain.config)), rel=0.03)
                else:
                    assert torch.equal(one.weight, two.weight)


@pytest.mark.parametrize(
    ("width", "ranks"),
    [(768, (64, 64, 32, 128)), (1024, (64, 64, 32, 160)), (2048, (96, 96, 64, 256)), (2560, (96, 96, 64, 320))],
)
def test_the_ranks_of_rwkv7_follow_the_width(width: int, ranks: tuple[int, ...]) -> None:
    sizes = {"hidden_size": width, "num_attention_heads": width // 64}
    config = hf_arch.config_from_dict({"architecture": "rwkv7", **sizes})
    mixer, options = config.mixer_specs[0]
    assert tuple(mixer.ranks(config, options).values()) == ranks


def test_yoco_has_the_initial_values_of_its_source() -> None:
    """Embeddings N(0, 1 / D); feed-forwards and all that has to do with shared keys as torch has Linear."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 160, "pad_token_id": 0}
    model, plain = (build("yoco", **sizes, init=init) for init in ("yoco", None))
    others, seen = dict(plain.named_parameters()), set()
    for name, parameter in model.named_parameters():
        changed = ".ffn." in name or any(f"layers.{index}.mixer." in name for index in (1, 2, 3))  # from the builder on
        if name == "model.embed_tokens.weight":
            assert std(parameter[1:]) == pytest.approx(64**-0.5, rel=0.05) and not parameter[0].any()
        elif changed and parameter.dim() == 2:
            seen.add(name.split(".", 3)[3])
            assert std(parameter) == pytest.approx(uniform(parameter.shape[1]), rel=0.05)
        else:
            assert torch.equal(parameter, others[name]), name
    assert {"mixer.k_proj.weight", "mixer.q_proj.weight", "mixer.o_proj.weight", "ffn.down_proj.weight"} <= seen
