"""Decoders that read all answers of a row from the model's state at the last position alone, told the position: what
compression asks for (`ProbeData.from_last_state`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

DECODER = "answer_decoder"


class LastStateDecoder(nn.Module):
    """Reads every token of a row [B, T] from the model's last state [B, D]: two layers, told the position."""

    def __init__(self, width: int, length: int, vocab_size: int) -> None:
        super().__init__()
        self.position = nn.Embedding(length, width)
        self.hidden = nn.Linear(2 * width, 2 * width)
        self.out = nn.Linear(2 * width, vocab_size)

    def forward(self, state: Tensor) -> Tensor:
        """Logits [B, T, V]."""
        places = self.position.weight[None].expand(state.shape[0], -1, -1)
        told = torch.cat([state[:, None].expand_as(places), places], dim=-1)
        return self.out(F.gelu(self.hidden(told)))


class MadDecoder(nn.Module):
    """MAD's: the sum of the last state and a fixed sine and cosine of the position, two layers of width D with a norm
    before each, and a norm before the head."""

    place: Tensor

    def __init__(self, width: int, length: int, vocab_size: int) -> None:
        super().__init__()
        half = width // 2
        frequencies = 10_000 ** -(torch.arange(half) / max(1, half - 1))
        angles = torch.arange(length)[:, None] * frequencies
        place = F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, width - 2 * half))
        self.register_buffer("place", place, persistent=False)
        blocks = [[nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()] for _ in range(2)]
        self.layers = nn.Sequential(*blocks[0], *blocks[1], nn.LayerNorm(width), nn.Linear(width, vocab_size))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, state: Tensor) -> Tensor:
        """Logits [B, T, V] of states [B, D]."""
        logits: Tensor = self.layers(state[:, None] + self.place)
        return logits


def read_from_last_state(model: PreTrainedModel, decoder: nn.Module) -> None:
    """Makes `decoder` a part of the causal LM, which then answers by it instead of by its head."""
    head = model.get_output_embeddings()
    if head.weight is not model.get_input_embeddings().weight:
        head.requires_grad_(False)  # nothing is read by it, and DDP waits for the gradient of every parameter
    model.add_module(DECODER, decoder)
    model.forward = MethodType(_answers, model)


@contextmanager
def without_decoder(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model has no decoder and answers by its head."""
    decoder, forward = getattr(model, DECODER), model.__dict__.pop("forward")
    delattr(model, DECODER)
    try:
        yield
    finally:
        model.add_module(DECODER, decoder)
        model.forward = forward


def _answers(self: Any, input_ids: Tensor, **kwargs: Any) -> CausalLMOutput:
    """Logits [B, T, V] of every position, read from the last state of rows [B, T]."""
    state = self.model(input_ids=input_ids, **kwargs).last_hidden_state[:, -1]
    return CausalLMOutput(logits=getattr(self, DECODER)(state))
