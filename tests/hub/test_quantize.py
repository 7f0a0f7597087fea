"""8-bit copies of every architecture, and GGUF files, each read back by the library that they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_arch
from hf_arch.checkpoints.checkpoint import load_ours
from hf_arch.cli.hub_commands import export_command, quantize_command
from hf_arch.core.errors import ConfigError
from hf_arch.data.tokenizer import build_tokenizer
from hf_arch.hub.export import export_gguf, export_hub
from hf_arch.hub.quantize import _require_attention, quantize, unquantized_modules

from .conftest import save_tiny

TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. " * 20
TOKENS = torch.randint(3, 97, (2, 16), generator=torch.Generator().manual_seed(3))


def save_with_tokenizer(folder: Path, name: str, **overrides) -> Path:
    """A tiny model with a byte-level BPE tokenizer."""
    save_tiny(folder, name, vocab_size=300, **overrides)
    build_tokenizer("bpe", 300, lambda: [TEXT]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["torchao-int8", "torchao-int8-dynamic"])
@pytest.mark.parametrize("name", hf_arch.list_architectures())
def test_every_architecture_in_8_bits_loads_again_and_generates(name: str, method: str, tmp_path: Path):
    pytest.importorskip("torchao", reason="torchao is not installed")
    source = save_with_tokenizer(tmp_path / "model", name)
    quantize(source, tmp_path / "small", method)
    original, small = load_ours(source), AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    linear = {key for key, module in original.named_modules() if isinstance(module, torch.nn.Linear)}
    changed = {key.removesuffix(".weight") for key, tensor in small.named_parameters() if is_int8(tensor)}
    assert changed == linear - set(unquantized_modules(original)) and changed
    exact, near = dict(original.named_parameters()), dict(small.named_parameters())
    for key in exact.keys() - {f"{name}.weight" for name in changed}:
        assert torch.equal(exact[key], near[key]), key
    with torch.no_grad():
        logits, small_logits = original(TOKENS).logits, small(TOKENS).logits
    assert (logits - small_logits).norm() < 0.15 * logits.norm()
    assert not torch.equal(logits, small_logits)
    assert small.generate(TOKENS, max_new_tokens=3, do_sample=False).shape == (2, 19)


def is_int8(tensor: torch.Tensor) -> bool:
    return type(tensor).__name__.startswith("Int8")


def test_the_change_in_perplexity_is_printed(tmp_path: Path, capsys):
    pytest.importorskip("torchao", reason="torchao is not installed")
    source = save_with_tokenizer(tmp_path / "model", "llama")
    (tmp_path / "text.txt").write_text(TEXT)
    arguments = (str(source), str(tmp_path / "small"), "torchao-int8")
    assert quantize_command(*arguments, str(tmp_path / "text.txt")) == 0
    said = capsys.readouterr().out
    assert "perplexity: " in said and "%; text.txt)" in said and "KiB -> " in said


def test_what_quantize_cannot_do_is_told(tmp_path: Path):
    source = save_with_tokenizer(tmp_path / "model", "llama")
    with pytest.raises(ConfigError, match="--method: 'int8' is not known; nearest: 'torchao-int8'"):
        quantize(source, tmp_path / "small", "int8")
    try:
        import gptqmodel  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"--method: gptq needs the package gptqmodel: .* environment of its own"):
            quantize(source, tmp_path / "small", "gptq")
    assert not (tmp_path / "small").exists()


def test_gptq_refuses_recurrent_mixers_by_name(tmp_path: Path):
    _require_attention(load_ours(save_tiny(tmp_path / "llama", "llama")))
    with pytest.raises(ConfigError, match="--method: gptq cannot quantise GatedLinearAttention"):
        _require_attention(load_ours(save_tiny(tmp_path / "gla", "gla")))


def test_a_gguf_file_read_by_transformers_gives_the_same_logits_and_tokens(tmp_path: Path, capsys):
    pytest.importorskip("gguf", reason="gguf is not installed")
    for tied in (False, True):
        source = save_with_tokenizer(tmp_path / f"model{tied}", "llama", qk_norm=False, tie_word_embeddings=tied)
        file = tmp_path / f"tied_{tied}.gguf"
        assert export_command(str(source), "gguf", str(file)) == 0
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name).eval()
        with torch.no_grad():
            assert torch.equal(theirs(TOKENS).logits, load_ours(source)(TOKENS).logits)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
        assert tokenizer(TEXT)["input_ids"] == AutoTokenizer.from_pretrained(source)(TEXT)["input_ids"]


def test_what_gguf_cannot_hold_is_refused_by_name(tmp_path: Path):
    pytest.importorskip("gguf", reason="gguf is not installed")
    for overrides, expected in (
        ({}, "qk_norm: 1e-06 cannot be expressed in a llama checkpoint"),
        ({"qk_norm": False, "hidden_act": "gelu"}, "hidden_act: 'gelu' cannot be expressed in a GGUF file"),
        ({"qk_norm": False, "attention_bias": True}, "attention_bias: True cannot be expressed in a GGUF file"),
    ):
        source = save_with_tokenizer(tmp_path / expected.split(":")[0], "llama", **overrides)
        with pytest.raises(ConfigError, match=expected):
            export_gguf(source, tmp_path / "x.gguf")
    source = save_with_tokenizer(tmp_path / "gla", "gla")
    with pytest.raises(ConfigError, match="cannot be expressed in a llama checkpoint"):
        export_gguf(source, tmp_path / "x.gguf")
    build_tokenizer("char", 0, lambda: [TEXT]).save_pretrained(tmp_path / "qk_norm")
    assert not (tmp_path / "x.gguf").exists()


def test_a_tokenizer_that_gguf_cannot_hold_is_refused(saved_llama: Path, tmp_path: Path):
    pytest.importorskip("gguf", reason="gguf is not installed")
    with pytest.raises(ConfigError, match="the tokenizer is not byte-level BPE"):
        export_gguf(saved_llama, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_an_exported_repository_is_whole_and_is_not_written_over(run_folder: Path, tmp_path: Path, capsys):
    assert export_command(str(run_folder), "hub", str(tmp_path / "shared")) == 0
    names = {path.name for path in (tmp_path / "shared").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "modeling_hfa_gla.py"} <= names
    with pytest.raises(ConfigError, match=r"--output: .* is not empty"):
        export_hub(run_folder, tmp_path / "shared")
    with pytest.raises(ConfigError, match="--format: 'onnx' is not known"):
        export_command(str(run_folder), "onnx", None)
