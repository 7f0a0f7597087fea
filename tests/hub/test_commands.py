"""The commands from the command line: what they write and print, and every mistake in one line with exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hf_arch.cli.hub_commands  # noqa: F401 (what libraries say when they are imported belongs to no command)
from hf_arch.cli import app


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_model_goes_out_and_comes_back(saved_llama: Path, tmp_path: Path):
    code, out, _ = call("push", saved_llama, "alice/tiny", "--dry-run")
    assert code == 0 and "README.md" in out and "model.safetensors" in out and "modeling_hfa_llama.py" in out
    code, out, _ = call("push", saved_llama, "alice/tiny", "--dry-run", "--no-code")
    assert code == 0 and "README.md" in out and ".py" not in out
    code, out, _ = call("export", saved_llama, "--format", "hub", "--output", tmp_path / "repo")
    assert code == 0 and "files" in out
    assert "AutoModelForCausalLM" in json.loads((tmp_path / "repo" / "config.json").read_text())["auto_map"]
    code, out, _ = call("convert", tmp_path / "repo", tmp_path / "theirs", "--to", "llama")
    assert code == 0 and "hfa_llama -> llama: max abs difference" in out
    assert call("convert", tmp_path / "theirs", tmp_path / "ours")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["push", "nowhere", "a/b"], "nowhere: no such folder"),
        (["push", "{model}", "a b", "--dry-run"], "repo_id: "),
        (["push", "{model}"], "REPO_ID"),
        (["push", "{model}", "a/b", "--dry-run", "--checkpoints"], "--checkpoints: "),
        (["export", "{model}"], "--format"),
        (["export", "{model}", "--format", "guf"], "nearest: 'gguf'"),
        (["convert", "{model}", "{new}"], "--to: "),
        (["convert", "{model}", "{new}", "--to", "gpt3"], "nearest: 'gpt2'"),
        (["convert", "{model}", "{new}", "--to", "gpt2"], "cannot be expressed in a gpt2 checkpoint"),
        (["convert", "{model}", "{model}", "--to", "llama"], "DST: "),
        (["quantize", "{model}", "{new}", "--method", "torchao"], "nearest: 'torchao-int8'"),
        (["quantize", "{model}", "{new}", "--method", "torchao-int8", "--text", "none.txt"], "none.txt"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(saved_llama: Path, tmp_path: Path, arguments: list[str], expected: str):
    names = {"model": saved_llama, "new": tmp_path / "new"}
    code, out, err = call(*(argument.format(**names) for argument in arguments))
    assert code == 2 and out == "" and expected in err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "new").exists()
