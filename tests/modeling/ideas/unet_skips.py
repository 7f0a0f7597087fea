"""The first half of the layers hands its outputs to the second, last in, first out."""

import torch
from torch import nn
from transformers import initialization as init

from hf_arch.core.registry import STREAMS
from hf_arch.layers.streams.base import LayerStream, Stream


class SkipLayer(LayerStream):
    def __init__(self, config, options, layer_idx):
        super().__init__(config, options, layer_idx)
        half = config.num_hidden_layers // 2
        self.pushes = layer_idx < half
        self.factor = nn.Parameter(torch.empty(1)) if layer_idx >= config.num_hidden_layers - half else None

    def init_weights(self):
        if self.factor is not None:
            init.ones_(self.factor)

    def enter(self, state):
        return state if self.factor is None else (state[0] + self.factor * state[-1], *state[1:-1])

    def leave(self, state):
        return (*state, state[0]) if self.pushes else state


@STREAMS.register("idea_unet_skips")
class SkipStream(Stream):
    Layer = SkipLayer
    label = "MyUNet"

    @classmethod
    def repeats(cls, options):
        return False
