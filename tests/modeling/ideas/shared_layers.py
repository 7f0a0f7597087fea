"""Each layer twice in a row, with the same weights."""

from hf_arch.core.registry import DEPTHS
from hf_arch.layers.depths.base import Depth


@DEPTHS.register("idea_shared_layers")
class Twice(Depth):
    label = "MyShared"

    @classmethod
    def plan(cls, config, options):
        return [layer for layer in range(config.num_hidden_layers) for _ in range(2)]
