"""Text: streamed as it comes, ended by stop strings, the same in a batch and alone, from any checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import hf_arch
from hf_arch.cli import app
from hf_arch.core.errors import ConfigError
from hf_arch.data import build_tokenizer
from hf_arch.evaluation.generation import (
    SamplingOptions,
    _CallbackStreamer,
    cut_at_stop,
    generate_batch,
    generate_text,
    read_prompts,
)
from hf_arch.evaluation.loading import load_model
from tests.evaluation.tiny import WORDS, byte_tokenizer, saved_model, tiny_model

PROMPTS = ("the king", "a", "dust where no man dares", "France is")


@pytest.mark.parametrize("name", ["gpt2", "gla", "mamba", "hybrid"])
def test_greedy_text_is_the_same_in_a_batch_and_alone(name: str) -> None:
    model, tokenizer = tiny_model(name), byte_tokenizer()
    options = SamplingOptions(max_new_tokens=8, temperature=0)
    alone = [generate_text(model, tokenizer, prompt, options).text for prompt in PROMPTS]
    together = [done.text for done in generate_batch(model, tokenizer, PROMPTS, options, batch_size=3)]
    assert together == alone


def test_what_is_streamed_is_what_is_returned() -> None:
    model, tokenizer = tiny_model("gla"), byte_tokenizer()
    options = SamplingOptions(max_new_tokens=30, seed=1)
    pieces: list[str] = []
    done = generate_text(model, tokenizer, "the king", options, write=pieces.append)
    assert "".join(pieces) == done.text
    assert generate_text(model, tokenizer, "the king", options).text == done.text
    assert generate_text(model, tokenizer, "the king", SamplingOptions(max_new_tokens=30, seed=2)).text != done.text


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_text_ends_before_a_stop_string_that_spans_tokens(kind: str) -> None:
    tokenizer = build_tokenizer(kind, 280, lambda: iter([WORDS]))
    model = tiny_model("llama", vocab_size=len(tokenizer))
    whole = generate_text(model, tokenizer, "the king", SamplingOptions(max_new_tokens=40, seed=5))
    stop = next(
        whole.text[start : start + 3]
        for start in range(4, len(whole.text))
        if whole.text[start : start + 3].isascii() and whole.text.find(whole.text[start : start + 3]) == start
    )
    pieces: list[str] = []
    options = SamplingOptions(max_new_tokens=40, seed=5, stop=("never to be seen", stop))
    cut = generate_text(model, tokenizer, "the king", options, write=pieces.append)
    assert cut.text == "".join(pieces) == cut_at_stop(whole.text, [stop])
    assert stop not in cut.text
    assert cut.tokens < whole.tokens
    # In a batch the others go on, and the padding behind the stop string is not counted.
    batch = list(generate_batch(model, tokenizer, ["the king"] * 2, SamplingOptions(12, 0, stop=(stop,))))
    single = generate_text(model, tokenizer, "the king", SamplingOptions(12, 0, stop=(stop,)))
    assert [(done.text, done.tokens) for done in batch] == [(single.text, single.tokens)] * 2


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        (["a", "b", "c"], ["bc"], "a"),
        (["ab", "ab", "c", "d"], ["abc"], "ab"),  # what looked like its beginning was not
        (["ab", "x"], ["abc"], "abx"),
        (["ab"], ["abc"], "ab"),  # and at the end nothing may be held back
        (["one\ntwo"], ["\n", "one\ntwo"], ""),
        (["abc"], [], "abc"),
    ],
)
def test_nothing_of_a_stop_string_is_streamed(pieces: Sequence[str], stop: Sequence[str], expected: str) -> None:
    written: list[str] = []
    streamer = _CallbackStreamer(byte_tokenizer(), written.append, stop)
    for piece in pieces:
        streamer.on_finalized_text(piece)
    streamer.on_finalized_text("", stream_end=True)
    assert "".join(written) == expected


def test_a_checkpoint_of_transformers_is_loaded_by_transformers(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load_model(tmp_path, dtype=torch.bfloat16)
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype is torch.bfloat16


def test_a_checkpoint_of_fla_becomes_a_model_of_ours(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ours = hf_arch.config_from_dict({"architecture": "gla", "vocab_size": len(tokenizer), **sizes})
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(ours).eval()
    config, state = hf_arch.to_foreign(model, "gla")
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors")
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_model(tmp_path)
    tokens = torch.arange(3, 20)[None]
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_a_file_of_prompts_is_one_document(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "model", "retnet")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the king\n\na\n")
    arguments = ["generate", str(model), "--prompt-file", str(prompts), "--max-new-tokens", "4", "--temperature", "0"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.stderr
    assert [entry["prompt"] for entry in json.loads(done.stdout)] == ["the king", "a"]
    assert "tokens/s" in done.stderr


def test_every_option_acts_on_a_folder_of_transformers(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=128, initializer_range=0.4
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def written(*options: str) -> str:
        arguments = ["generate", str(tmp_path), "--prompt", "the king", "--max-new-tokens", "24", *options]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.stderr
        assert done.stderr.strip().endswith("tokens/s")
        assert done.stdout.startswith("the king")
        return done.stdout

    plain = written("--seed", "5", "--temperature", "1.0", "--top-k", "0")
    assert written("--seed", "5", "--temperature", "1.0", "--top-k", "0") == plain
    changed = (
        ["--seed", "6"],
        ["--temperature", "0.1"],
        ["--top-k", "3"],
        ["--top-p", "0.3"],
        ["--min-p", "0.5"],
        ["--repetition-penalty", "9"],
    )
    for option in changed:
        others = ["--seed", "5", "--temperature", "1.0", "--top-k", "0", *option]  # the last one given counts
        assert written(*others) != plain, option
    stop = next(letter for letter in plain[12:] if letter.isascii() and letter.isalnum() and letter not in plain[:12])
    assert written("--seed", "5", "--temperature", "1.0", "--top-k", "0", "--stop", stop) == plain.split(stop)[0] + "\n"


def test_mistakes_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    for prompt, file, expected in (
        (None, None, "either --prompt or --prompt-file"),
        ("a", "b", "either --prompt or --prompt-file"),
        (None, str(tmp_path / "none.txt"), "none.txt: No such file"),
        (None, str(tmp_path / "empty.txt"), "there are no prompts"),
    ):
        with pytest.raises(ConfigError, match=expected):
            read_prompts(prompt, file)
    for options, expected in (
        ({"min_p": 1.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition"),
        ({"stop": ("",)}, "stop"),
    ):
        with pytest.raises(ConfigError, match=f"{expected}.*: expected"):
            SamplingOptions(**options)
