"""A hashed table of the last three tokens, added to the embedding."""

from torch import nn

from hf_arch.core.registry import EMBEDDINGS
from hf_arch.layers.cost import MixerCost
from hf_arch.layers.embeddings.base import Embedding, recent_ids


@EMBEDDINGS.register("idea_ngram")
class Trigram(Embedding):
    keeps_state = True
    label = "MyNgram"

    def __init__(self, config, options, slot):
        super().__init__(config, options, slot)
        self.table = nn.Embedding(101, config.hidden_size)

    def forward(self, x, ids, context):
        recent = recent_ids(ids, 2, context, self.slot) + 1
        hashed = recent[..., 0] * 31 + recent[..., 1] * 37 + recent[..., 2] * 41
        return x + self.table(hashed % 101)

    def cost(self, seq_len):
        return MixerCost(state_bytes=2 * 8)
