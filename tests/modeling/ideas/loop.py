"""The middle layers three times."""

from hf_arch.core.registry import DEPTHS
from hf_arch.layers.depths.base import Depth


@DEPTHS.register("idea_loop")
class MiddleLoop(Depth):
    label = "MyLoop"

    @classmethod
    def plan(cls, config, options):
        first, *middle, last = range(config.num_hidden_layers)
        return [first, *(middle * 3), last]
