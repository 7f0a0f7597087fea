"""A model with its tokenizer from anywhere: a run, a saved model, a repository on the Hub, a foreign checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_arch.checkpoints.checkpoint import checkpoint_folder, load_checkpoint, read_config, read_tensors
from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.interchange import FOREIGN, from_foreign

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def parse_dtype(name: str) -> torch.dtype | None:
    """The torch dtype that `fp32`, `bf16`, `fp16` (or torch's own names) mean; None for `auto`, which is as saved.

    Raises:
        ConfigError: no such dtype.
    """
    if name == "auto":
        return None
    if name not in DTYPES:
        raise choice_error("--dtype", name, ["auto", *DTYPES])
    return DTYPES[name]


def parse_device(name: str | None) -> torch.device:
    """The device of that name, or the GPU where there is one. Raises `ConfigError` where it is not on this machine."""
    available = ["cpu"]
    if torch.cuda.is_available():
        available += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    if name is None:
        return torch.device("cuda" if "cuda" in available else "cpu")
    if name not in available:
        raise choice_error("--device", name, available)
    return torch.device(name)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that is saved with a model. Raises `ConfigError` where none does, or it cannot be read."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a tokenizer's class or its reader makes of files that it does not expect
        raise ConfigError(f"{folder}: no tokenizer that can be loaded: {' '.join(str(error).split())[:200]}") from error


def load_model(
    path: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in eval mode and tokenizer.

    Args:
        path: a run folder, a saved model, or a Hub id. A checkpoint of transformers is loaded by transformers; one of
            flash-linear-attention becomes a model of ours.
        dtype: of the weights; None leaves them as saved.
        device: None takes the GPU where there is one.

    Raises:
        ConfigError: nothing there, a damaged checkpoint, an unknown architecture, no tokenizer.
    """
    folder = checkpoint_folder(path)
    model = load_causal_lm(folder)
    tokenizer = load_tokenizer(folder)
    if dtype is not None:
        model = model.to(dtype)
    return model.to(device or parse_device(None)).eval(), tokenizer


def load_causal_lm(folder: Path) -> PreTrainedModel:
    """The model in a folder, in eval mode on the CPU, in the dtype that it was saved in."""
    config = read_config(folder)
    if config["model_type"] in FOREIGN and config["model_type"] not in CONFIG_MAPPING:
        return from_foreign(config, read_tensors(folder))
    return load_checkpoint(folder)
