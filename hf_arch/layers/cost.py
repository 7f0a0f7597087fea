"""What a part of a model costs besides its Linear layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MixerCost:
    """What a layer costs beyond its Linear layers, for one sequence (batch 1).

    FLOPs are two per multiply-add of products (attention scores and values, state updates and read-outs);
    elementwise work is not counted, as in torch's `FlopCounterMode`.

    Attributes:
        mixing_flops: of the forward pass over `seq_len` tokens.
        decode_flops: of one new token after `seq_len` cached ones.
        state_bytes: of what the cache holds after `seq_len` tokens.
        inactive_parameters: parameters that a token does not pass through (experts that were not chosen).
    """

    mixing_flops: float = 0
    decode_flops: float = 0
    state_bytes: int = 0
    inactive_parameters: int = 0

    def __add__(self, other: MixerCost) -> MixerCost:
        return MixerCost(
            self.mixing_flops + other.mixing_flops,
            self.decode_flops + other.decode_flops,
            self.state_bytes + other.state_bytes,
            self.inactive_parameters + other.inactive_parameters,
        )


def per_token(flops: float, seq_len: int) -> MixerCost:
    """The cost of products that take `flops` for each token, however many came before it."""
    return MixerCost(mixing_flops=flops * seq_len, decode_flops=flops)
