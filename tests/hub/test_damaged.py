"""Every command on checkpoints with something wrong or hostile in them: one line, exit code 2, and no code is run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import hf_arch
import hf_arch.cli.hub_commands  # here: what libraries say when they are imported belongs to no command
from hf_arch.checkpoints.checkpoint import load_config
from hf_arch.cli import app
from hf_arch.core.errors import ConfigError
from hf_arch.data.tokenizer import build_tokenizer

from .conftest import save_tiny

COMMANDS = {
    "eval": ["eval", "{model}", "--tasks", "perplexity", "--text", "{text}"],
    "generate": ["generate", "{model}", "--prompt", "the", "--max-new-tokens", "2"],
    "export": ["export", "{model}", "--format", "hub", "--output", "{new}"],
    "push": ["push", "{model}", "alice/tiny", "--dry-run"],
    "convert": ["convert", "{model}", "{new}", "--to", "llama"],
    "info": ["info", "{model}"],
    "bench": ["bench", "{model}", "--seq-len", "4", "--repeats", "1"],
}
READ_WEIGHTS = ("eval", "generate", "export", "push", "convert")
FOR_ANYBODYS = ("eval", "generate", "bench")
WRITES_FILE = "open({!r}, 'w').write('it ran')\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of ours and one of transformers, both with a tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("whole")
    tokenizer = build_tokenizer("char", 0, lambda: ["the king of france is dead"])
    save_tiny(folder / "ours", "llama", qk_norm=False, vocab_size=len(tokenizer))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "theirs")
    for name in ("ours", "theirs"):
        tokenizer.save_pretrained(folder / name)
    (folder / "text.txt").write_text("the king is dead " * 9)
    return folder


def cut_short(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def corrupted(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\xff" * 200)


def a_pickle(model: Path) -> None:
    """That would write a file when it is read."""

    class Hostile:
        def __reduce__(self) -> Any:
            return exec, (WRITES_FILE.format(str(model.parent / "ran")),)

    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile()))


def a_harmless_pickle(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def a_tensor_missing(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def other_sizes(model: Path) -> None:
    edit(model / "config.json", intermediate_size=32)


def unknown_architecture(model: Path) -> None:
    edit(model / "config.json", model_type="lama")


def code_of_its_own(model: Path) -> None:
    edit(
        model / "config.json",
        model_type="lama",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    )
    (model / "evil.py").write_text(WRITES_FILE.format(str(model.parent / "ran")))


def wrong_values(model: Path) -> None:
    edit(model / "config.json", num_attention_heads=0)


def words_for_numbers(model: Path) -> None:
    edit(model / "config.json", num_hidden_layers="two")


def no_json(model: Path) -> None:
    (model / "config.json").write_text("{")


def no_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()


def a_tokenizer_of_no_json(model: Path) -> None:
    (model / "tokenizer.json").write_text("{")


def a_tokenizer_with_code(model: Path) -> None:
    edit(model / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    (model / "evil.py").write_text(WRITES_FILE.format(str(model.parent / "ran")))


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("source", ["ours", "theirs"])
@pytest.mark.parametrize(
    ("harm", "commands", "expected"),
    [
        (cut_short, READ_WEIGHTS, "model.safetensors: damaged or cut short"),
        (corrupted, READ_WEIGHTS, "model.safetensors: damaged or cut short"),
        (a_pickle, READ_WEIGHTS, "pytorch_model.bin: a pickle can run code when it is read"),
        (a_harmless_pickle, READ_WEIGHTS, "pytorch_model.bin: a pickle can run code when it is read"),
        (no_weights, READ_WEIGHTS, "model.safetensors: no such file"),
        (a_tensor_missing, ("eval", "generate"), "1 tensors are missing, e.g. model.norm.weight"),
        (other_sizes, ("eval", "generate"), "tensors are mismatched, e.g. "),
        (unknown_architecture, tuple(COMMANDS), "model_type: 'lama' is not known; nearest: "),
        (code_of_its_own, tuple(COMMANDS), "brings its own code, which is not run"),
        (wrong_values, tuple(COMMANDS), "config.json: "),
        (words_for_numbers, tuple(COMMANDS), "num_hidden_layers"),
        (no_json, tuple(COMMANDS), "config.json: not valid JSON"),
        (no_tokenizer, ("eval", "generate"), "no tokenizer that can be loaded"),
        (a_tokenizer_of_no_json, ("eval", "generate"), "no tokenizer that can be loaded"),
        (a_tokenizer_with_code, ("eval", "generate"), "no tokenizer that can be loaded"),
    ],
)
def test_it_is_told_in_one_line(
    whole: Path, source: str, harm: Callable[[Path], None], commands: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    model, new = tmp_path / "model", tmp_path / "new"
    shutil.copytree(whole / source, model)
    harm(model)
    for command in [name for name in commands if source == "ours" or name in FOR_ANYBODYS]:
        arguments = [word.format(model=model, new=new, text=whole / "text.txt") for word in COMMANDS[command]]
        done = CliRunner().invoke(app, arguments, input="y\n")  # whatever may be asked is answered by yes
        said = done.stderr.strip()
        assert done.exit_code == 2, f"{command}: {said}"
        assert said.startswith("error: ") and "\n" not in said, f"{command}: {said}"
        assert expected in said, f"{command}: {said}"
        assert not (tmp_path / "ran").exists(), command
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model"], command


def test_code_beside_a_known_architecture_is_not_run(whole: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(whole / "theirs", model)
    edit(model / "config.json", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (model / "evil.py").write_text(WRITES_FILE.format(str(tmp_path / "ran")))
    done = CliRunner().invoke(app, ["generate", str(model), "--prompt", "the", "--max-new-tokens", "2"], input="y\n")
    assert done.exit_code == 0, done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_part_of_the_users_own_is_asked_for_by_its_file(tmp_path: Path) -> None:
    saved = tmp_path / "model"
    hf_arch.tiny_config("llama").save_pretrained(saved)
    config = json.loads((saved / "config.json").read_text()) | {"norm": "scalenorm"}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"norm: 'scalenorm' is not known; .*HF_ARCH_PLUGINS=FILE\.py$"):
        load_config(saved)
    (tmp_path / "experiment_config.json").write_text(json.dumps({"model": {"plugins": ["mine.py"]}}))
    with pytest.raises(ConfigError, match=r"HF_ARCH_PLUGINS=mine\.py$"):
        load_config(saved)
