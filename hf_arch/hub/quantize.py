"""Smaller copies of a model: matrices in 8 bits by torchao, of attention models also in 4 by GPTQ.

    quantize("results/first", "small", "torchao-int8", text="held_out.txt")

What is quantised are the Linear layers, except the head and those whose weight a mixer reads by itself (its
`unquantized`): decays, step sizes, convolutions and norms stay as they are. A torchao model is loaded by
`from_pretrained` as any other; one made by GPTQ by gptqmodel (or by transformers, where `optimum` is installed).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_arch.checkpoints.checkpoint import checkpoint_folder, load_ours
from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.environment import set_variable
from hf_arch.evaluation.loading import load_tokenizer
from hf_arch.evaluation.text_loss import TextOptions, score_text
from hf_arch.hub.repository import copy_tokenizer, new_folder
from hf_arch.hub.run_facts import find_run
from hf_arch.layers.mixers.base import RecurrentMixer

METHODS = ("torchao-int8", "torchao-int8-dynamic", "gptq")
_ROWS = 64  # of a run's validation split, where no text is given
_GPTQ_ROWS, _GPTQ_LENGTH, _GPTQ_GROUP = 64, 512, 32


@dataclass(frozen=True)
class Quantization:
    """Bytes of the weights and perplexity (None where there was no text), before and after; `rows` names the text."""

    bytes_before: int
    bytes_after: int
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    rows: str | None = None


def quantize(path: str | Path, destination: str | Path, method: str, text: str | Path | None = None) -> Quantization:
    """Write a quantised copy of one of our models to the folder `destination`.

    Args:
        method: one of `METHODS`; `torchao-int8` quantises weights, `-dynamic` also activations at every call.
        text: a file to measure the perplexity on (and, for gptq, to calibrate on); by default a run's own validation
        split.

    Raises:
        ConfigError: an unknown method, a missing package, no model of ours, or no text where one is needed.
    """
    if method not in METHODS:
        raise choice_error("--method", method, METHODS)
    package = "torchao" if method.startswith("torchao") else "gptqmodel"
    if text is not None and not Path(text).is_file():
        raise ConfigError(f"--text: no file at {str(text)!r}")
    if importlib.util.find_spec(package) is None:
        hint = "`pip install 'hf-arch[quant]'`"
        if package == "gptqmodel":
            hint = "`pip install gptqmodel hf-arch` in an environment of its own"
        raise ConfigError(f"--method: {method} needs the package {package}: {hint}")
    if method == "gptq" and text is None:
        raise ConfigError("--text: gptq needs text to calibrate on; name a file")
    source = checkpoint_folder(path)
    measurable = text is not None or find_run(path) is not None
    options = TextOptions(file=None if text is None else str(text), limit=_ROWS if text is None else None)
    with new_folder(destination, "DST") as folder:
        original, tokenizer = load_ours(source), load_tokenizer(source) if measurable else None
        if method == "gptq":
            _require_attention(original)
        before = score_text(str(path), original, tokenizer, options) if tokenizer else {}
        copy_tokenizer(source, folder)
        if method == "gptq":
            small = _gptq(source, folder, Path(str(text)), original)
        else:
            small = _torchao(source, folder, method, unquantized_modules(original))
        after = score_text(str(path), small, tokenizer, options) if tokenizer else {}
        sizes = _weight_bytes(source), _weight_bytes(folder)
    return Quantization(*sizes, before.get("perplexity"), after.get("perplexity"), before.get("rows"))


def unquantized_modules(model: PreTrainedModel) -> list[str]:
    """Names of the Linear layers that must keep their weights."""
    return ["lm_head"] + [
        f"{name}.{child}" for name, module in model.named_modules() for child in getattr(module, "unquantized", ())
    ]


def _torchao(source: Path, folder: Path, method: str, left_alone: Sequence[str]) -> PreTrainedModel:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    kind = Int8WeightOnlyConfig() if method == "torchao-int8" else Int8DynamicActivationInt8WeightConfig()
    config = TorchAoConfig(kind, modules_to_not_convert=list(left_alone))
    AutoModelForCausalLM.from_pretrained(source, quantization_config=config).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()  # what was saved is what is measured


def _require_attention(model: PreTrainedModel) -> None:
    """Raise a ConfigError for recurrent mixers: gptqmodel runs layers one by one and garbles what these are handed."""
    recurrent = [mixer.__name__ for mixer, _ in model.config.mixer_members if issubclass(mixer, RecurrentMixer)]
    if recurrent:
        raise ConfigError(
            f"--method: gptq cannot quantise {recurrent[0]}, since gptqmodel runs no recurrent layers; "
            "nearest: 'torchao-int8'"
        )


def _gptq(source: Path, folder: Path, text: Path, original: PreTrainedModel) -> PreTrainedModel:
    # By default it asks for more workers than a small CPU has, and stops.
    set_variable("GPTQMODEL_CPU_WORKERS", str(os.cpu_count() or 1))
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.models.auto import MODEL_MAP, SUPPORTED_MODELS
    from gptqmodel.models.base import BaseQModel

    tree = ["model", "layers", "#", _gptq_layers(original)]
    # Layers of one model may have different mixers, so not every name is in every layer.
    attributes = {"module_tree": tree, "pre_lm_head_norm_module": "model.norm", "layer_modules_strict": False}
    MODEL_MAP[original.config.model_type] = type("ArchQModel", (BaseQModel,), attributes)
    SUPPORTED_MODELS.append(original.config.model_type)  # else it guesses the layers, and leaves attention out
    tokenizer = load_tokenizer(source)
    tokens = torch.tensor(tokenizer(text.read_text(encoding="utf-8"), verbose=False)["input_ids"])
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in tokens.split(_GPTQ_LENGTH)]
    config = QuantizeConfig(bits=4, group_size=_GPTQ_GROUP, offload_to_disk=False)
    model: Any = GPTQModel.load(str(source), config, backend=BACKEND.TORCH)
    model.quantize(rows[:_GPTQ_ROWS], batch_size=1)
    model.save(str(folder))
    return GPTQModel.load(str(folder), backend=BACKEND.TORCH).model.eval()


def _gptq_layers(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """The Linear layers of a block that can be quantised, by branch: those whose rows divide into whole groups."""
    left_alone = set(unquantized_modules(model))
    branches: dict[str, dict[str, None]] = {"mixer": {}, "ffn": {}}
    for name, module in model.named_modules():
        parts = name.split(".", 4)  # model.layers.<index>.<branch>.<name>
        fits = isinstance(module, nn.Linear) and module.in_features % _GPTQ_GROUP == 0 and name not in left_alone
        if fits and len(parts) == 5 and parts[3] in branches:
            branches[parts[3]][parts[4]] = None
    return {branch: tuple(names) for branch, names in branches.items() if names}


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
