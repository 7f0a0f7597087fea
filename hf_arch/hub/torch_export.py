"""The forward pass of an attention model as one `torch.export` archive, which runs where only torch is installed:

    program = torch.export.load("model.pt2").module()
    logits = program(input_ids)                         # int64 [B, T] -> [B, T, V]

Batch and length are free, the length up to the model's positions. There is no cache and no mask: rows of unequal
length are padded on the right, where a causal model does not look.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel

from hf_arch.core.errors import ConfigError
from hf_arch.layers.mixers.base import RecurrentMixer

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest logit (at least 1): sums in another order."""


class _Logits(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


def write_program(model: PreTrainedModel, path: Path) -> None:
    """Write the program to `path`, after holding it, as it loads, against the model at other batches and lengths.

    Raises:
        ConfigError: a recurrent mixer (the shapes inside its scan depend on the length), or anything else that
            torch.export cannot follow, with its reason.
    """
    recurrent = [mixer.__name__ for mixer, _ in model.config.mixer_members if issubclass(mixer, RecurrentMixer)]
    if recurrent:
        raise ConfigError(f"--format torch: {recurrent[0]} cannot be exported; allowed: mixers of attention")
    longest = model.config.max_position_embeddings
    shapes = {"input_ids": {0: Dim.DYNAMIC, 1: Dim("length", max=longest)}}
    with torch.no_grad():
        try:
            program = torch.export.export(_Logits(model), (_tokens(model, 2, min(longest, 17)),), dynamic_shapes=shapes)
        except Exception as error:  # of many kinds, whatever its tracer stumbles over
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ConfigError(f"--format torch: torch.export cannot follow this model ({reason[:160]})") from error
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".hf_arch_") as folder:
            written = Path(folder) / path.name
            torch.export.save(program, written)
            loaded = torch.export.load(written).module()
            for batch, length in ((1, 1), (3, 5), (2, longest)):
                tokens = _tokens(model, batch, min(length, longest))
                expected, found = model(tokens, use_cache=False).logits, loaded(tokens)
                difference = (expected - found).abs().max() / expected.abs().max().clamp(min=1)
                assert difference <= TOLERANCE, f"the program's logits differ by {difference.item():.1e}"
            os.replace(written, path)


def _tokens(model: PreTrainedModel, batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (batch, length), generator=generator)
