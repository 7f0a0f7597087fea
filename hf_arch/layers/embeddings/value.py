"""Value embeddings (nanochat, modded-nanogpt): some layers' values get a row of their own table for each token.

    nanochat        v += 3 sigmoid(W_g x[..., :12]) V_i[ids],   W_g [Hkv, 12]           (`mix: gate`)
    modded-nanogpt  v <- (1 - c) v + c V_i[ids],                c at first 0.5          (`mix: scalar`)

Each such layer i owns a table V_i [vocab, Hkv V]. nanochat gives one to every other layer, the last one included, and
draws it uniformly with a standard deviation of D^-1/2; the gate's weights are U(0, 0.02).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import EMBEDDINGS
from ..contract import LayerContext
from ..cost import MixerCost, per_token
from ..sites.base import Spot, chosen_layers
from .base import Embedding, EmbeddingOutput, EmbeddingSite

GATE_CHANNELS = 12


@options
class ValueOptions(Options):
    """`layers`: their indices, negative ones from the end; None = every other, the last included. `mix`: see above."""

    layers: list[int] | None = None
    mix: Literal["gate", "scalar"] = "gate"


class ValueSite(EmbeddingSite):
    """The mixing of a layer's values with its table's rows."""

    place: ClassVar[str] = "qkv"
    no_weight_decay = ("amount",)

    def __init__(self, config: Any, options: tuple[Any, int], spot: Spot):
        super().__init__(config, options, spot)
        mixer, given = config.mixer_specs[spot.layer_idx]
        self.value_width, self.groups = mixer.qkv_widths(config, given)[2], mixer.value_heads(config, given)
        self.channels = min(GATE_CHANNELS, config.hidden_size)
        if self.options.mix == "gate":
            self.gate = nn.Parameter(torch.empty(self.groups, self.channels))
        else:
            self.amount = nn.Parameter(torch.empty(1))

    def init_weights(self) -> None:
        if self.options.mix == "gate":
            init.uniform_(self.gate, 0.0, 0.02)
        else:
            init.constant_(self.amount, 0.5)

    def forward(self, x: Tensor, *, source: Tensor, context: LayerContext) -> Tensor:
        rows = self.value(context).to(x.dtype)
        rest, value = x.split([x.shape[-1] - self.value_width, self.value_width], -1)
        if self.options.mix == "gate":
            gate = 3 * torch.sigmoid(source[..., : self.channels] @ self.gate.t().to(source.dtype))
            value = value + (rows.unflatten(-1, (self.groups, -1)) * gate.unsqueeze(-1)).flatten(-2)
        else:
            value = (1 - self.amount) * value + self.amount * rows
        return torch.cat([rest, value], -1)

    def cost(self, seq_len: int) -> MixerCost:
        return per_token(2 * self.groups * self.channels if self.options.mix == "gate" else 0, seq_len)


@EMBEDDINGS.register("value")
class ValueEmbedding(Embedding):
    """A table of values for each of some layers, looked up by token."""

    Options = ValueOptions
    Layer = ValueSite
    label = "VE"

    def __init__(self, config: Any, options: ValueOptions, slot: int):
        super().__init__(config, options, slot)
        tables = {}
        for layer in self.layers(config, options):
            mixer, given = config.mixer_specs[layer]
            tables[str(layer)] = nn.Embedding(config.vocab_size, mixer.qkv_widths(config, given)[2])
        self.tables = nn.ModuleDict(tables)

    @classmethod
    def layers(cls, config: Any, options: ValueOptions) -> tuple[int, ...]:
        if options.layers is not None:
            return chosen_layers("embeddings value layers", options.layers, config)
        count = config.num_hidden_layers
        return tuple(layer for layer in range(count) if layer % 2 == (count - 1) % 2)

    @classmethod
    def validate(cls, config: Any, options: ValueOptions) -> None:
        for layer in cls.layers(config, options):
            mixer, given = config.mixer_specs[layer]
            if mixer.qkv_widths(config, given) is None:
                raise ConfigError(
                    f"embeddings value: layer {layer} ({mixer.__name__}) has no values of its own kind; "
                    "name other `layers`"
                )

    def init_weights(self) -> None:
        bound = math.sqrt(3 / self.config.hidden_size)
        for table in self.tables.values():
            init.uniform_(table.weight, -bound, bound)

    def forward(self, x: Tensor, ids: Tensor | None, context: LayerContext) -> EmbeddingOutput:
        return EmbeddingOutput(x, {int(layer): table(ids) for layer, table in self.tables.items()})
