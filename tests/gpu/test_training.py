"""What training rests on, on the GPU: the chunked loss, compiled models, attention kernels, and `hf-arch train`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_arch
from hf_arch import checks
from hf_arch.runs.files import read_metrics
from tests.suite.models import token_ids
from tests.training.tiny import write_recipe, write_text

ROOT = Path(__file__).parents[2]
COMPILED = ("llama", "gqa", "moe", "gla", "gated_delta_net", "mamba2", "hgrn", "rwkv7", "hybrid")

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
backends = pytest.mark.parametrize("backend", ["torch", "fla"], indirect=True)


def loss_and_gradients(model: Any, ids: Tensor, bf16: bool = False, **inputs: Any) -> tuple[Tensor, ...]:
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        loss = model(ids, labels=ids, use_cache=False, **inputs).loss
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return loss, *torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_the_chunked_loss_is_that_of_all_logits(bf16: bool, device: torch.device, measured: Callable) -> None:
    """A vocabulary large enough that the loss goes by chunks; the other way is cross-entropy of the model's logits."""
    config = hf_arch.tiny_config("llama", vocab_size=5000, hidden_size=64)
    model = checks.perturbed_model(config).to(device).train()
    ids = token_ids(4, 600).to(device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    chunked = loss_and_gradients(model, ids, bf16)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        logits = model(ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    tolerance = 2e-2 if bf16 else 1e-4
    measured("loss and gradients", chunked, (loss, *torch.autograd.grad(loss, parameters)), tolerance)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in COMPILED])
@backends
def test_a_compiled_model_gives_the_same(
    name: str, backend: str, bf16: bool, device: torch.device, measured: Callable
) -> None:
    torch._dynamo.reset()
    config = hf_arch.tiny_config(
        name, hidden_size=128, num_attention_heads=2, embedding_dropout=0.0, residual_dropout=0.0, attention_dropout=0.0
    )
    model, ids = checks.perturbed_model(config).to(device).train(), token_ids(2, 96).to(device)
    expected = loss_and_gradients(model, ids, bf16)
    actual = loss_and_gradients(torch.compile(model), ids, bf16)
    scale = torch.cat([gradient.flatten() for gradient in expected[1:]]).square().mean().sqrt()
    tolerance = 5e-2 if bf16 else 1e-4
    measured("loss", actual[0], expected[0], tolerance)
    ours, theirs = (torch.cat([gradient.flatten() for gradient in each[1:]]) / scale for each in (actual, expected))
    measured("gradients", ours, theirs, tolerance)


ATTENTION = {"sdpa": None, "flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


@pytest.mark.parametrize("window", [None, 17], ids=["full", "window"])
@pytest.mark.parametrize("implementation", ATTENTION)
def test_attention_kernels_give_what_the_formula_gives(
    implementation: str, window: int | None, device: torch.device, measured: Callable
) -> None:
    package = ATTENTION[implementation]
    if package is not None and (device.type != "cuda" or find_spec(package) is None):
        pytest.skip(f"needs a GPU and {package}")
    ids = token_ids(2, 128).to(device)
    positions = (torch.arange(128) % torch.tensor([[50], [128]])).to(device)
    found = []
    for chosen in ("eager", implementation):
        config = hf_arch.tiny_config(
            "gqa", hidden_size=128, num_attention_heads=4, sliding_window=window, attn_implementation=chosen
        )
        model = checks.perturbed_model(config).to(device, torch.bfloat16)
        with torch.no_grad():
            found.append(model(ids, position_ids=positions, use_cache=False).logits)
    measured("logits", found[1], found[0], 3e-2)


def hf_arch_train(recipe: Path, folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "hf_arch", "train", str(recipe), "--output-dir", str(folder), *arguments]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize("architecture", ["llama", "gla"])
def test_a_run_trains_and_goes_on_from_its_checkpoint(
    architecture: str, device: torch.device, measured: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hf-arch train` in the precision that it chooses, to step 6; and to step 3, then on: the same losses."""
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path / "cache"))
    if device.type == "cpu":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings = {"precision": "auto", "lr_scheduler_type": "constant_with_warmup"}
    text, model = write_text(tmp_path), {"architecture": architecture}
    recipe = write_recipe(tmp_path, text, model=model, training=settings)
    hf_arch_train(recipe, tmp_path / "whole")
    hf_arch_train(recipe, tmp_path / "parts", "training.max_steps=3")
    hf_arch_train(recipe, tmp_path / "parts", "training.max_steps=3", "--extend-to", "6")
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["status"] == "completed", results["status"]
    if device.type == "cuda":
        assert torch.cuda.get_device_name(device) in json.dumps(results)
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert len(whole) == len(parts) == 6
    measured("losses", torch.tensor(parts), torch.tensor(whole), 1e-3 if device.type == "cuda" else 0.0)
