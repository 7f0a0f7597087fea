"""Checkpoints of other libraries to ours and back, each conversion held against its source before it is kept.

    convert("gpt2_folder", "ours")                 # config.json + safetensors, sharded or not -> one of our models
    convert("ours", "theirs", to="llama")

Nothing in a checkpoint is run: pickles and code are refused. The check compares logits on the same tokens with the
source's own library where transformers is that library; for others the tensors must come back bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_arch.checkpoints.checkpoint import (
    checkpoint_folder,
    is_ours,
    load_checkpoint,
    load_ours,
    read_config,
    read_tensors,
    unknown_type,
)
from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.hub.repository import copy_tokenizer, new_folder
from hf_arch.interchange import FOREIGN, current_tensors, from_foreign, to_foreign

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest logit (at least 1): fp32 sums in another order."""


@dataclass(frozen=True)
class Conversion:
    """What was converted to what, and how far the result is from its source.

    Attributes:
        source, result: model types. reference: what the result was held against, in words.
        difference: largest absolute difference of logits (of tensors, where only these could be compared).
        scale: largest absolute logit, at least 1.
    """

    source: str
    result: str
    reference: str
    difference: float
    scale: float = 1.0

    @property
    def agrees(self) -> bool:
        """Whether the difference is no more than that of sums taken in another order."""
        return self.difference <= TOLERANCE * self.scale


class DifferentResult(Exception):
    """A conversion whose result is not its source; nothing is kept of it. The first argument is the Conversion."""


def convert(source: str | Path, destination: str | Path, to: str | None = None) -> Conversion:
    """Convert a checkpoint and write it to the folder `destination`, if it agrees with its source.

    Args:
        source: a saved model, a run, or a repository on the Hub; ours or of a type in `FOREIGN`.
        to: the type to convert to; None means to ours.

    Raises:
        ConfigError: one line; a checkpoint that cannot be read safely, an unknown type, or a component that cannot be
        expressed exactly, by name.
        DifferentResult: the check failed.
    """
    folder = checkpoint_folder(source)
    config = read_config(folder)
    if to is not None and to not in FOREIGN:
        raise choice_error("--to", to, FOREIGN)
    if is_ours(config) and to is None:
        raise ConfigError(f"--to: {folder} is one of our models already; name a type: {', '.join(FOREIGN)}")
    if not is_ours(config) and config["model_type"] not in FOREIGN:
        raise unknown_type(folder, config)
    with new_folder(destination, "DST") as written:
        model = (
            load_ours(folder, dtype=torch.float32) if is_ours(config) else from_foreign(config, read_tensors(folder))
        )
        if to is None:
            model.save_pretrained(written)
        else:
            write_foreign(model, to, written)
        copy_tokenizer(folder, written)
        done = _check(folder, config, model, written)
        if not done.agrees:
            raise DifferentResult(done)
    return done


def write_foreign(model: PreTrainedModel, model_type: str, folder: Path) -> None:
    """Write one of our models as another library reads it: config.json, safetensors, generation config."""
    config, state = to_foreign(model, model_type)
    class_name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if class_name is not None:
        config["architectures"] = [class_name]
    if model_type == "mamba2":
        # Of initialisation only, and transformers 5.23 also does it to projections that it has just loaded.
        config["rescale_prenorm_residual"] = False
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_torch_state_dict({key: _with_storage_of_its_own(tensor) for key, tensor in state.items()}, folder)
    GenerationConfig.from_model_config(model.config).save_pretrained(folder)


def _with_storage_of_its_own(tensor: Tensor) -> Tensor:
    """A part of a tensor cannot be saved; a whole one stays itself, so that tied ones are saved once."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _check(folder: Path, config: dict[str, Any], model: PreTrainedModel, written: Path) -> Conversion:
    """Hold what was written against what it came from, both as they load from disk."""
    result = read_config(written)
    names = config["model_type"], result["model_type"]
    before = model if is_ours(config) else _as_transformers_runs(folder, config)
    after = load_ours(written) if is_ours(result) else _as_transformers_runs(written, result)
    if before is not None and after is not None:
        tokens = _tokens(model)
        difference, scale = compare_logits(before, after, tokens)
        return Conversion(*names, f"logits of {tokens.numel()} tokens", difference, max(1.0, scale))
    # A library that is not installed: through our model and back, every tensor must be the same.
    if is_ours(result):
        restored = load_ours(written)
        vars(restored).update(source_layout=vars(model)["source_layout"])  # which tensors' names may depend on
        original = current_tensors(config, read_tensors(folder))
        again = to_foreign(restored, config["model_type"])[1]
    else:
        original, again = model.state_dict(), from_foreign(result, read_tensors(written)).state_dict()
    return Conversion(*names, "tensors after the way back", _largest_difference(original, again))


def _as_transformers_runs(folder: Path, config: dict[str, Any]) -> PreTrainedModel | None:
    """A foreign checkpoint in the library that it was made for, or None where that is not transformers."""
    model_type = config["model_type"]
    # flash-linear-attention uses these names too, with options of its own.
    foreign_dialect = model_type in ("mamba", "mamba2") and "layer_norm_epsilon" not in config
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or foreign_dialect:
        return None
    return load_checkpoint(folder, dtype=torch.float32)


def _tokens(model: PreTrainedModel) -> Tensor:
    """[2, T] tokens, the same at every call."""
    length = min(48, model.config.max_position_embeddings)
    return torch.randint(model.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def compare_logits(first: PreTrainedModel, second: PreTrainedModel, tokens: Tensor) -> tuple[float, float]:
    """(largest absolute difference, largest absolute logit) of two models on the same tokens [B, T]."""
    one, other = first(tokens, use_cache=False).logits.float(), second(tokens, use_cache=False).logits.float()
    return (one - other).abs().max().item(), one.abs().max().item()


def _largest_difference(original: dict[str, Tensor], again: dict[str, Tensor]) -> float:
    """Over the tensors that the way back gives; a tied head may be missing on either side."""
    shared = original.keys() & again.keys()
    assert shared, "no tensor in common"
    return max((original[key].float() - again[key].float()).abs().max().item() for key in shared)
