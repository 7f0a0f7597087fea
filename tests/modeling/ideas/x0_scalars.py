"""x <- a_l x + c_l x0 before each layer."""

import torch
from torch import nn
from transformers import initialization as init

from hf_arch.core.registry import STREAMS
from hf_arch.layers.streams.base import LayerStream, Stream


class X0Layer(LayerStream):
    def __init__(self, config, options, layer_idx):
        super().__init__(config, options, layer_idx)
        self.scalars = nn.Parameter(torch.empty(2))

    def init_weights(self):
        init.copy_(self.scalars, torch.tensor([1.0, 0.1]))

    def enter(self, state):
        return (self.scalars[0] * state[0] + self.scalars[1] * state[1], state[1])


@STREAMS.register("idea_x0_scalars")
class X0Stream(Stream):
    Layer = X0Layer
    label = "MyX0"

    def start(self, embeddings):
        return (embeddings, embeddings)
