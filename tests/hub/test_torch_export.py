"""Programs of torch.export: the model's logits at any batch and length, where only torch is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_arch.checkpoints.checkpoint import load_ours
from hf_arch.cli.hub_commands import export_command
from hf_arch.core.errors import ConfigError
from hf_arch.hub.export import export_torch

from .conftest import save_tiny

SLOW = ("llama", "moe", "mla")
PROGRAM = """
import sys, torch
from safetensors.torch import load_file, save_file
program = torch.export.load(sys.argv[1]).module()
save_file({key: program(tokens).contiguous() for key, tokens in load_file(sys.argv[2]).items()}, sys.argv[3])
assert not any(name.split(".")[0] in ("hf_arch", "transformers") for name in sys.modules)
"""


@pytest.mark.rest
@pytest.mark.parametrize("name", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_program_gives_the_models_logits_at_other_batches_and_lengths(name: str, tmp_path: Path, python, capsys):
    source = save_tiny(tmp_path / "model", name, max_position_embeddings=64)
    assert export_command(str(source), "torch", str(tmp_path / "model.pt2")) == 0
    assert "1 files" in capsys.readouterr().out
    model = load_ours(source)
    draw = torch.Generator().manual_seed(0)
    tokens = {f"{b}x{t}": torch.randint(97, (b, t), generator=draw) for b, t in ((1, 1), (2, 9), (5, 64))}
    if name == "llama":  # in a process of its own, without the package
        save_file(tokens, tmp_path / "tokens.safetensors")
        paths = [str(tmp_path / file) for file in ("model.pt2", "tokens.safetensors", "logits.safetensors")]
        done = python(PROGRAM, *paths, installed=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found = load_file(paths[-1])
    else:
        program = torch.export.load(tmp_path / "model.pt2").module()
        found = {key: program(value) for key, value in tokens.items()}
    with torch.no_grad():
        for key, value in tokens.items():
            torch.testing.assert_close(found[key], model(value).logits, rtol=0, atol=1e-4)


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path: Path):
    for name, expected in (("gla", "GatedLinearAttention cannot be exported"), ("hybrid_of_two", "Gated")):
        overrides = {"mixer": ["attention", "gla"]} if name == "hybrid_of_two" else {}
        source = save_tiny(tmp_path / name, "llama" if overrides else name, **overrides)
        with pytest.raises(ConfigError, match=f"--format torch: {expected}"):
            export_torch(source, tmp_path / "out" / "model.pt2")
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "there.pt2").write_text("")
    with pytest.raises(ConfigError, match=r"--output: .* exists"):
        export_torch(tmp_path / "gla", tmp_path / "there.pt2")
