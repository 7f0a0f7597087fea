"""A mixer in one file: an exponential moving average with a learned decay a channel.

    h_t = a h_{t-1} + (1 - a) (W x_t)      y_t = V h_t      0 < a < 1

A recipe loads this file by `plugins: [moving_average.py]`; docs/new_mixer.md goes through it.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hf_arch.core.options import Options, options
from hf_arch.core.registry import MIXERS
from hf_arch.layers.contract import LayerContext
from hf_arch.layers.layout import SequenceLayout
from hf_arch.layers.mixers.base import MixerCost, RecurrentMixer
from hf_arch.layers.state import LayerState
from hf_arch.ops.elementwise import hgrn_scan


@options
class MovingAverageOptions(Options):
    """`expand`: channels of the average for each of the model."""

    expand: int = 1


@MIXERS.register("moving_average")
class MovingAverage(RecurrentMixer):
    """An exponential moving average, each channel with a decay of its own."""

    Options = MovingAverageOptions
    cache_kind: ClassVar = "recurrent"
    label: ClassVar[str] = "EMA"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("decay",)

    def __init__(self, config: Any, options: MovingAverageOptions, layer_idx: int) -> None:
        super().__init__(config, options, layer_idx)
        self.inner = options.expand * config.hidden_size
        self.in_proj = nn.Linear(config.hidden_size, self.inner, bias=False)
        self.out_proj = nn.Linear(self.inner, config.hidden_size, bias=False)
        self.decay = nn.Parameter(torch.empty(self.inner))

    def init_weights(self) -> None:
        """Averages over 2 to 100 tokens."""
        init.copy_(self.decay, torch.linspace(0.5, 0.99, self.inner).logit())

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        """[B, T, D] to [B, T, D]; the average of the last token is what decoding goes on from."""
        decay = torch.sigmoid(self.decay.float()).expand(*x.shape[:2], -1)
        fresh = layout.zero_padding(1 - decay)  # padding neither adds to the average nor lets it decay
        averages, last = hgrn_scan(
            fresh * self.in_proj(x).float(),
            1 - fresh,
            initial_state=state.recurrent(),
            output_final_state=bool(state),
            segment_ids=layout.segment_ids,
        )
        state.write_recurrent(last)
        return self.out_proj(averages.to(x.dtype))

    def cost(self, seq_len: int) -> MixerCost:
        """The projections are counted by themselves; the average is fp32."""
        return MixerCost(state_bytes=4 * self.inner)
