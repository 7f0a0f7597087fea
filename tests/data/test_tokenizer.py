"""Tokenizers give text back exactly, come out the same every time, and load without this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_arch.core.errors import ConfigError
from hf_arch.data.tokenizer import build_tokenizer, byte_character, load_tokenizer, save_tokenizer
from tests.data.texts import make_text

TEXTS = [make_text(seed, 400) for seed in range(3)]


def build(kind: str):
    return build_tokenizer(kind, 320, lambda: TEXTS)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_text_comes_back_exactly(kind: str):
    tokenizer = build(kind)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=60))
@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_bytes_can_write_any_text(kind: str, text: str):
    tokenizer = _BUILT.setdefault(kind, build(kind))
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text


_BUILT: dict = {}


def test_a_byte_is_a_token():
    tokenizer = build("byte")
    assert len(tokenizer) == 258
    text = "a\u00e9\n\U0001f600"
    assert [token - 2 for token in tokenizer(text)["input_ids"]] == list(text.encode())


def test_byte_characters_are_those_of_the_library():
    from tokenizers import pre_tokenizers

    assert {byte_character(byte) for byte in range(256)} == set(pre_tokenizers.ByteLevel.alphabet())


def test_an_unknown_character_has_a_token_of_its_own():
    tokenizer = build("char")
    assert tokenizer("a\u0416b\u0416\u0416")["input_ids"].count(tokenizer.unk_token_id) == 3


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_special_tokens_and_padding(kind: str):
    tokenizer = build(kind)
    assert tokenizer.padding_side == "left"
    assert tokenizer.eos_token_id == tokenizer.bos_token_id != tokenizer.pad_token_id
    assert tokenizer(["a", "the dog"], padding=True)["attention_mask"][0][0] == 0
    assert (tokenizer.unk_token is not None) == (kind == "char")


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_built_twice_it_is_the_same(kind: str):
    assert build(kind).backend_tokenizer.to_str() == build(kind).backend_tokenizer.to_str()


def test_a_trained_vocabulary_has_the_size_asked_for():
    assert len(build("bpe")) == 320


@pytest.mark.rest
def test_auto_tokenizer_loads_them_without_the_package(tmp_path: Path):
    code = """
import json, sys
from transformers import AutoTokenizer
text = sys.stdin.read()
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.padding_side == "left"
    print(json.dumps(tokenizer(text)["input_ids"]))
assert "hf_arch" not in sys.modules
"""
    kinds = ("char", "byte", "bpe")
    for kind in kinds:
        save_tokenizer(build(kind), tmp_path / kind)
    command = [sys.executable, "-c", code, *(str(tmp_path / kind) for kind in kinds)]
    done = subprocess.run(command, input=TEXTS[0], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        build(kind)(TEXTS[0])["input_ids"] for kind in kinds
    ]


def test_a_tokenizer_from_a_folder_or_a_file(tmp_path: Path):
    save_tokenizer(build("char"), tmp_path)
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(str(name))
        assert loaded(TEXTS[0])["input_ids"] == build("char")(TEXTS[0])["input_ids"]
        assert (loaded.eos_token, loaded.padding_side) == ("<|endoftext|>", "left")


def test_a_tokenizer_that_is_not_there():
    with pytest.raises(ConfigError, match=r"^data\.tokenizer: 'bp' could not be loaded .*nearest: 'bpe'.*$"):
        build("bp")


def test_a_tokenizer_without_an_end_of_text_token(tmp_path: Path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="no eos token"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))
