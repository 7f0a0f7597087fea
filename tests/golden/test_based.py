"""The Based layer gives the reference's output and gradients; there is no Based model to convert there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import hf_arch

FILES = sorted((Path(__file__).parent / "fla").glob("based__*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_output_and_gradients(path: Path) -> None:
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        source = json.loads(file.metadata()["config"])
    config = hf_arch.tiny_config(
        "based",
        hidden_size=source["hidden_size"],
        num_attention_heads=source["num_heads"],
        num_key_value_heads=source["num_key_value_heads"],
        mixer={"type": "based", "feature_dim": source["feature_dim"]},
    )
    mixer_class, options = config.mixer_specs[0]
    mixer = mixer_class(config, options, 0)
    mixer.load_state_dict({key.removeprefix("state/"): t for key, t in tensors.items() if key.startswith("state/")})
    x = tensors["input"].requires_grad_()
    output = mixer(x)
    torch.testing.assert_close(output, tensors["output"], rtol=0, atol=2e-5)
    (output * tensors["cotangent"]).sum().backward()
    gradients = {"input": x.grad, **{name: parameter.grad for name, parameter in mixer.named_parameters()}}
    for name, gradient in gradients.items():
        expected = tensors[f"grad/{name}"]
        torch.testing.assert_close(gradient / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-4)
