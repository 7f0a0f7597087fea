"""The component table says what acts: held against the modules that a model is built of."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_arch


def described(name: str, **overrides: object) -> dict[str, str]:
    return dict(hf_arch.describe(hf_arch.tiny_config(name, **overrides))[1])


def meta_model(config: object) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", hf_arch.list_architectures())
def test_position_and_ffn_width_are_those_of_the_modules(name: str) -> None:
    config = hf_arch.tiny_config(name, intermediate_size=None)
    table, model = dict(hf_arch.describe(config)[1]), meta_model(config)
    assert ("rope" in table["position"]) == bool(len(model.model.rotary_embs))
    ffns = [layer.ffn for layer in model.model.layers]
    widths = {
        str(shape[0] if shape[1] == config.hidden_size else shape[1])
        for ffn in ffns
        if ffn is not None
        for key, parameter in ffn.named_parameters()
        if key.startswith(("down_proj.weight", "experts.down_proj")) and (shape := parameter.shape[-2:])
    }
    told = {re.sub(r"^\d+x| an expert$", "", part) for part in table["ffn width"].split(", ")}
    assert told - {"none"} == widths, table["ffn width"]
    assert ("none" in told) == (None in ffns)
    assert ("none" in table["activation"]) == (None in ffns)


def test_layers_that_differ_are_told_apart() -> None:
    mixed = described("mixed", num_hidden_layers=4, mixer=["gla*3", {"type": "attention", "window": 8}])
    assert mixed["position"] == "rope in 1 of 4 layers"
    assert mixed["window"] == "3xoff, 8"
    assert described("mixed", mixer=["gla", "mamba"])["position"] == "none"
    assert described("llama", mixer=["attention", {"type": "attention", "position": "none"}])["position"] == (
        "rope in 1 of 2 layers"
    )
    assert described("llama", position="alibi")["position"] == "alibi"
    assert described("gpt2")["position"] == "learned"
    assert described("llama", ffn={"type": "glu", "hidden_act": "relu"})["activation"] == "relu"
    assert described("llama", intermediate_size=None, ffn=["glu", {"type": "mlp", "intermediate_size": 40}])[
        "ffn width"
    ] == ("256, 40")


def test_the_name_has_the_positions_that_act() -> None:
    def name(*mixers: object) -> str:
        return hf_arch.describe(hf_arch.tiny_config("llama", mixer=list(mixers)))[0]

    plain, nope = "attention", {"type": "attention", "position": "none"}
    assert name(plain, plain) == "2L-4H-32D-RoPE-RMS-SwiGLU-PreNorm"
    assert name(nope, nope) == "2L-4H-32D-NoPE-RMS-SwiGLU-PreNorm"
    assert name(plain, nope) == "2L-4H-32D-RoPE+NoPE-RMS-SwiGLU-PreNorm"
