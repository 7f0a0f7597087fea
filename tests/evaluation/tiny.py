"""Tiny models on disk, with a byte tokenizer whose vocabulary they share, made without any training."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import hf_arch
from hf_arch.data import build_tokenizer

WORDS = "the king of france is dead and his crown lies in the dust where no man dares to lift it again"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer("byte", 258, lambda: iter([WORDS]))


def tiny_model(name: str, **overrides: object) -> PreTrainedModel:
    """In eval mode, every parameter moved off its initial value, so that every part of it has an effect."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    settings = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **overrides}
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def saved_model(folder: Path, name: str, **overrides: object) -> Path:
    """The same as a folder that `from_pretrained` reads."""
    tiny_model(name, **overrides).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
