"""One GGUF file of a Llama-like model, for llama.cpp and whatever else reads that format (package `gguf`).

The model goes through `to_foreign(model, "llama")`, so anything that a Llama cannot express is refused by name. Queries
and keys are permuted: GGUF rotates neighbouring pairs of a head, transformers its two halves,

    W_gguf[h, 2 i + j] = W[h, j d/2 + i],   j in {0, 1},  d the head's width.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_arch.core.errors import ConfigError
from hf_arch.data.tokenizer import byte_character
from hf_arch.evaluation.loading import load_tokenizer
from hf_arch.evaluation.special_tokens import adds_bos
from hf_arch.interchange import to_foreign

ARCHITECTURE = "llama"


def write_gguf(model: PreTrainedModel, folder: Path, path: Path) -> None:
    """Write the model, in fp32, and the byte-level BPE tokenizer in `folder` to `path`.

    Raises:
        ConfigError: the package is missing, a component that a Llama lacks, or another kind of tokenizer.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("--format gguf: needs the package gguf: pip install 'hf-arch[quant]'")
    import gguf

    config, state = _llama(model)
    tokenizer = _tokenizer(folder)
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    heads, kv_heads, head_dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    writer.add_name(folder.resolve().name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"].get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, tokenizer, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for key, tensor in state.items():
        if key.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = _pairs_together(tensor, heads if "q_proj" in key else kv_heads)
        name = names.get_name(key, try_suffixes=(".weight",))
        assert name is not None, key
        writer.add_tensor(name, np.ascontiguousarray(tensor.to(torch.float32).numpy()))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _llama(model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The model as a Llama that GGUF can hold."""
    config, state = to_foreign(model, "llama")
    for name, allowed in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if config[name] != allowed:
            raise ConfigError(f"{name}: {config[name]!r} cannot be expressed in a GGUF file; allowed: {allowed!r}")
    rope_type = config["rope_parameters"].get("rope_type", "default")
    if rope_type != "default":
        raise ConfigError(
            f"rope_parameters: rope_type {rope_type!r} cannot be expressed in a GGUF file; allowed: 'default'"
        )
    return config, state


def _pairs_together(weight: Tensor, heads: int) -> Tensor:
    """[H d, D] with the two halves of each head interleaved."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, whose vocabulary must be byte-level: GGUF knows no other without scores."""
    tokenizer = load_tokenizer(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend is not None else {}
    every_byte = all(byte_character(byte) in model.get("vocab", {}) for byte in range(256))
    if model.get("type") != "BPE" or not every_byte:
        raise ConfigError(
            f"{folder}: the tokenizer is not byte-level BPE (`bpe`, `byte`), which alone a GGUF file holds"
        )
    return tokenizer


def _add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Tokens in the order of their numbers, merges, and the special tokens; unused numbers get placeholders."""
    import gguf

    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    numbers = range(max(vocab_size, len(by_id)))
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([by_id.get(number, f"[PAD{number}]") for number in numbers])
    writer.add_token_types(
        [
            kinds.UNUSED if number not in by_id else kinds.CONTROL if number in special else kinds.NORMAL
            for number in numbers
        ]
    )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_token_merges(merges)
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(adds_bos(tokenizer))
    writer.add_add_eos_token(False)  # llama.cpp would end every prompt with it
