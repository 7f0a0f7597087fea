"""The embedding contract: what token ids give besides the token embedding.

An embedding may change what enters the first layer (smear, a hashed bigram), and hand a tensor of its own to each of
some layers (value embeddings, an n-gram injected into several), where its `Layer`, a site, puts it to use. What it
keeps between tokens lies in a cache entry of the model's own behind those of the layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..contract import ConfiguredPart, LayerContext
from ..layout import SequenceLayout
from ..sites.base import Site, Spot


@dataclass(frozen=True)
class EmbeddingOutput:
    """What an embedding gives.

    Attributes:
        hidden_states: [B, T, D], what enters the first layer.
        layers: by layer index, what is handed to the layer, [B, T, ...]; exactly the layers that `layers` names.
    """

    hidden_states: Tensor
    layers: Mapping[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, out: Tensor | EmbeddingOutput) -> EmbeddingOutput:
        """`out` as an EmbeddingOutput; hidden states alone hand nothing to layers."""
        return out if isinstance(out, EmbeddingOutput) else cls(out)


class EmbeddingSite(Site):
    """Where a layer uses what an embedding hands to it; built as `LayerClass(config, (options, number), spot)`."""

    place: ClassVar[str] = "block_input"

    def __init__(self, config: Any, options: tuple[Any, int], spot: Spot):
        super().__init__(config, options[0], spot)
        self.name = value_name(options[1], spot.layer_idx)

    def value(self, context: LayerContext) -> Tensor:
        """[B, T, ...] for this layer, in the order of the tokens that the site gets."""
        return context.values[self.name]


class Embedding(ConfiguredPart):
    """Base of every such part; built as `EmbeddingClass(config, options, slot)`, `slot` the index of its state."""

    Layer: ClassVar[type[EmbeddingSite] | None] = None
    """The site in each layer that it hands something to."""
    keeps_state: ClassVar[bool] = False
    """Whether it keeps a state between tokens."""
    reads_ids: ClassVar[bool] = True
    """Whether it needs token ids; such a model refuses `inputs_embeds` alone."""

    def __init__(self, config: Any, options: Any, slot: int):
        super().__init__(config, options)
        self.slot = slot

    @classmethod
    def layers(cls, config: Any, options: Any) -> tuple[int, ...]:
        """The layers that it hands something to."""
        return ()

    def forward(self, x: Tensor, ids: Tensor | None, context: LayerContext) -> Tensor | EmbeddingOutput:
        """Change what enters the first layer.

        Args:
            x: [B, T, D]. ids: [B, T] int64, None where the model was given embeddings.
            context: with the layout; `context.state(0)` reaches the states, of which `self.slot` is its own.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no `forward`")


def value_name(number: int, layer_idx: int) -> str:
    """The name under which embedding `number` of the config hands a value to a layer."""
    return f"embedding {number} of layer {layer_idx}"


def layer_value_names(config: Any, layer_idx: int) -> tuple[str, ...]:
    """The names of all such values of one layer."""
    return tuple(
        value_name(number, layer_idx)
        for number, (embedding, given) in enumerate(config.embedding_specs)
        if layer_idx in embedding.layers(config, given)
    )


def recent_ids(ids: Tensor, count: int, context: LayerContext, slot: int) -> Tensor:
    """[B, T, count + 1] int64: each token's id and the `count` before it in its document, -1 where there are none.

    Args:
        ids: [B, T]. slot: of the state, the last `count` ids [B, count] int64.
    """
    layout, state = context.layout, context.state(0)
    ordered = layout.reorder(ids.unsqueeze(-1)).squeeze(-1)
    if layout.mask is not None:
        ordered = torch.where(layout.mask, ordered, -1)
    past = state.recurrent(slot)
    if past is None:
        past = ordered.new_full((ids.shape[0], count), -1)
    window = torch.cat([past, ordered], 1)
    state.write_recurrent(_last_of_document(window, count, layout), slot)
    length = ids.shape[1]
    found = [window[:, count - lag : count - lag + length] for lag in range(count + 1)]
    if layout.segment_ids is not None:
        # What the cache holds is of the first document.
        first = layout.segment_ids[:, :1].expand(-1, count)
        documents = torch.cat([first, layout.segment_ids], 1)
        found = [
            torch.where(documents[:, count - lag : count - lag + length] == layout.segment_ids, each, -1)
            for lag, each in enumerate(found)
        ]
    return layout.restore(torch.stack(found, -1))


def _last_of_document(window: Tensor, count: int, layout: SequenceLayout) -> Tensor:
    """The last `count` ids of window [B, count + T], -1 before the document that is running at the end."""
    if layout.segment_ids is not None:
        last = layout.segment_ids[:, -1:]
        first = layout.segment_ids[:, :1].expand(-1, count)
        window = torch.where(torch.cat([first, layout.segment_ids], 1) == last, window, -1)
    if layout.num_valid is None:
        return window[:, window.shape[1] - count :]
    return window.gather(1, layout.num_valid[:, None] + torch.arange(count, device=window.device))
