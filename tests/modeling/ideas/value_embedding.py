"""Values of every layer get a row of a table shared by all layers."""

from torch import cat, nn

from hf_arch.core.registry import EMBEDDINGS
from hf_arch.layers.embeddings.base import Embedding, EmbeddingOutput, EmbeddingSite


class AddToValues(EmbeddingSite):
    place = "qkv"

    def forward(self, x, *, source, context):
        rows = self.value(context).to(x.dtype)
        rest, value = x.split([x.shape[-1] - rows.shape[-1], rows.shape[-1]], -1)
        return cat([rest, value + rows], -1)


@EMBEDDINGS.register("idea_value_embedding")
class SharedValues(Embedding):
    Layer = AddToValues
    label = "MyVE"

    def __init__(self, config, options, slot):
        super().__init__(config, options, slot)
        mixer, given = config.mixer_specs[0]
        self.table = nn.Embedding(config.vocab_size, mixer.qkv_widths(config, given)[2])

    @classmethod
    def layers(cls, config, options):
        return tuple(range(config.num_hidden_layers))

    def forward(self, x, ids, context):
        return EmbeddingOutput(x, dict.fromkeys(self.layers(self.config, self.options), self.table(ids)))
