"""Hashed n-grams injected before layers, through a gate and a dilated convolution (as in Qwen4-Exp).

    e = rows of the layer's own tables for the last 2..N tokens, as in `ngram`
    a = RMS(W_k e) . RMS(x) / sqrt(D),   v = sigmoid( sign(a) sqrt(|a|) ) W_v e
    x <- x + v + silu( conv( RMS(v) ) )       before layer l

with a depthwise convolution over `kernel_size` tokens that stand N apart, and norms with weights. W_v and the
convolution start at 0. Qwen4-Exp has a key and a gate for each of its streams; here x is the first stream.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.options import options
from ...core.registry import EMBEDDINGS
from ...ops.conv import causal_conv1d
from ..attention_product import cache_element_bytes
from ..contract import LayerContext
from ..cost import MixerCost
from ..norms import ArchRMSNorm
from ..sites.base import Spot, chosen_layers
from ..streams.base import check_whole
from .base import Embedding, EmbeddingOutput, EmbeddingSite, recent_ids
from .hashing import multipliers, primes_from
from .ngram import NgramEmbedding, NgramOptions, hashed_rows, within_sequence

LEAST = 1e-6  # of |a|, for the gradient of its root


@options
class InjectedNgramOptions(NgramOptions):
    """As ngram's; `layers`: before which rows are injected, None = all. `kernel_size`: tokens of the convolution."""

    layers: list[int] | None = None
    kernel_size: int = 4


class InjectionSite(EmbeddingSite):
    """One layer's gate and convolution."""

    keeps_state: ClassVar[bool] = True

    def __init__(self, config: Any, options: tuple[Any, int], spot: Spot):
        super().__init__(config, options, spot)
        width, own = config.hidden_size, InjectedNgram.width(config, self.options)
        self.key_proj, self.value_proj = nn.Linear(own, width, bias=False), nn.Linear(own, width, bias=False)
        self.key_norm, self.query_norm, self.conv_norm = (ArchRMSNorm(width, config.norm_eps) for _ in range(3))
        self.taps = nn.Parameter(torch.empty(width, self.options.kernel_size))

    def init_weights(self) -> None:
        init.zeros_(self.value_proj.weight)
        init.zeros_(self.taps)

    def forward(self, x: Tensor, *, source: Tensor, context: LayerContext) -> Tensor:
        rows = self.value(context).to(x.dtype)
        match = (self.key_norm(self.key_proj(rows)) * self.query_norm(x)).sum(-1, keepdim=True) / math.sqrt(x.shape[-1])
        gate = torch.sigmoid(match.abs().clamp(min=LEAST).sqrt() * match.sign())
        value = gate * self.value_proj(rows)
        return x + value + self.convolved(self.conv_norm(value), context)

    def convolved(self, value: Tensor, context: LayerContext) -> Tensor:
        """silu of the dilated convolution, [B, T, D]: a dense one with zeros between its taps."""
        layout, state = context.layout, self.state(context)
        spread = F.pad(self.taps.unsqueeze(-1), (self.options.order - 1, 0)).flatten(1)[:, self.options.order - 1 :]
        out, window = causal_conv1d(
            layout.zero_padding(layout.compact(value)),
            spread,
            None,
            activation="silu",
            initial_state=state.conv(self.spot.slot),
            segment_ids=layout.segment_ids,
            output_final_state=bool(state),
            num_valid=layout.num_valid,
        )
        state.write_conv(window, self.spot.slot)
        return layout.restore(out)

    def cost(self, seq_len: int) -> MixerCost:
        width, taps = self.taps.shape
        flops, kept = 2 * width * taps, (taps - 1) * self.options.order
        return MixerCost(flops * seq_len, flops, width * kept * cache_element_bytes(self.config))


@EMBEDDINGS.register("injected_ngram")
class InjectedNgram(NgramEmbedding):
    """Hashed tables of the last few tokens for each of some layers, injected through a gate."""

    Options = InjectedNgramOptions
    Layer = InjectionSite
    label = "InjectedNgram"
    field: ClassVar[str] = "injected_ngram"

    def __init__(self, config: Any, options: InjectedNgramOptions, slot: int):
        Embedding.__init__(self, config, options, slot)
        heads, chosen = options.heads * (options.order - 1), self.layers(config, options)
        primes = primes_from(options.table_size or config.vocab_size)
        self.layer_sizes = {layer: list(islice(primes, heads)) for layer in chosen}
        self.layer_factors = {
            layer: multipliers(options.seed, number, options.order, config.vocab_size)
            for number, layer in enumerate(chosen)
        }
        width = self.width(config, options) // heads
        self.tables = nn.ModuleDict(
            {str(layer): nn.Embedding(sum(sizes), width) for layer, sizes in self.layer_sizes.items()}
        )

    @classmethod
    def layers(cls, config: Any, options: InjectedNgramOptions) -> tuple[int, ...]:
        return chosen_layers("embeddings injected_ngram layers", options.layers, config)

    @classmethod
    def validate(cls, config: Any, options: InjectedNgramOptions) -> None:  # type: ignore[override]
        super().validate(config, options)
        check_whole("embeddings injected_ngram kernel_size", options.kernel_size, 2)
        cls.layers(config, options)

    def init_weights(self) -> None:
        """Its tables follow the config's policy."""

    def forward(self, x: Tensor, ids: Tensor | None, context: LayerContext) -> EmbeddingOutput:  # type: ignore[override]
        assert ids is not None
        recent = within_sequence(recent_ids(ids, self.options.order - 1, context, self.slot), self.config)
        made = {}
        for layer, sizes in self.layer_sizes.items():
            rows = hashed_rows(recent, self.layer_factors[layer], self.options.heads, sizes)
            made[layer] = self.tables[str(layer)](rows).flatten(-2)
        return EmbeddingOutput(x, made)
