"""Depthwise causal convolution over a few tokens (Fu et al. 2022, H3; Gu & Dao 2023), with its window in the cache."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops.conv import causal_conv1d
from .layout import SequenceLayout
from .state import LayerState


class ShortConvolution(nn.Conv1d):
    """y_t = act( sum_w weight[:, w] x_{t - W + 1 + w} + bias ), each channel by itself; [B, T, C] -> [B, T, C].

    Args:
        channels: C. kernel_size: W. activation: None or "silu".
        state_index: which of the layer's convolution states holds the last W - 1 inputs.
    """

    def __init__(
        self, channels: int, kernel_size: int, bias: bool = False, activation: str | None = "silu", state_index: int = 0
    ):
        super().__init__(channels, channels, kernel_size, groups=channels, bias=bias)
        self.activation, self.state_index = activation, state_index

    def forward(self, x: Tensor, layout: SequenceLayout, state: LayerState) -> Tensor:  # type: ignore[override]
        out, window = causal_conv1d(
            x,
            self.weight.squeeze(1),
            self.bias,
            activation=self.activation,
            initial_state=state.conv(self.state_index),
            segment_ids=layout.segment_ids,
            output_final_state=bool(state),
            num_valid=layout.num_valid,
        )
        state.write_conv(window, self.state_index)
        return out

    def flops(self, tokens: int) -> int:
        """Two per multiply-add."""
        return 2 * tokens * self.out_channels * self.kernel_size[0]

    def state_bytes(self, itemsize: int) -> int:
        """Of the window, in the activations' dtype."""
        return self.out_channels * (self.kernel_size[0] - 1) * itemsize
