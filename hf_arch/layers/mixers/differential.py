"""Differential attention (Ye et al. 2024, arXiv 2410.05258), in the form of transformers' DiffLlama.

    O_h = A_h [v_j, v_{j + Hkv/2}],   j = (h div (H / Hkv)) mod (Hkv / 2),   A_h the softmax map of head h
    y_h = (1 - lambda_init) RMSNorm( O_h - lambda O_{h + H/2} ),   h < H/2
    lambda = exp(l_q1 . l_k1) - exp(l_q2 . l_k2) + lambda_init,   lambda_init = 0.8 - 0.6 exp(-0.3 layer)

Two softmax maps of one value are subtracted, so that what they both attend to cancels.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import options
from ...core.registry import MIXERS
from ...ops.norm import rms_norm
from ..compat import attention_implementation
from .attention import Attention, AttentionOptions
from .attention_heads import AttentionCall


@options
class DifferentialOptions(AttentionOptions):
    """As attention's; `lambda_init`: None = 0.8 - 0.6 exp(-0.3 layer), layers counted from 0."""

    lambda_init: float | int | None = None


@MIXERS.register("differential")
class DifferentialAttention(Attention):
    """Attention whose heads come in pairs (h, h + H/2) that share a value twice as wide."""

    Options = DifferentialOptions
    label: ClassVar[str] = "Diff"
    no_weight_decay: ClassVar[tuple[str, ...]] = (
        *Attention.no_weight_decay,
        *("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"),
    )
    keep_fp32: ClassVar[tuple[str, ...]] = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")

    def __init__(self, config: Any, options: DifferentialOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        initial = options.lambda_init
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * layer_idx) if initial is None else float(initial)
        self.lambda_q1 = nn.Parameter(torch.empty(self.head_dim))
        self.lambda_k1 = nn.Parameter(torch.empty(self.head_dim))
        self.lambda_q2 = nn.Parameter(torch.empty(self.head_dim))
        self.lambda_k2 = nn.Parameter(torch.empty(self.head_dim))
        if options.output_gate == "headwise":
            self.g_proj = nn.Linear(config.hidden_size, self.num_heads // 2, bias=False)

    @classmethod
    def validate(cls, config: Any, options: Any) -> None:
        super().validate(config, options)
        heads, kv_heads, _ = cls.sizes(config, options)
        for name, count in (("num_attention_heads", heads), ("num_key_value_heads", kv_heads)):
            if count % 2:
                raise ConfigError(
                    f"{name}: {count} is odd, differential attention pairs heads; nearest valid: {count + 1}"
                )
        if options.exclusive:
            raise ConfigError(
                "exclusive: True is not supported by mixer differential, whose values are pairs; use False"
            )
        if options.lambda_init is not None and not 0 <= options.lambda_init < 1:
            raise ConfigError(f"lambda_init: {options.lambda_init} is not allowed; use a number in [0, 1)")

    @classmethod
    def tensor_parallel(cls, config: Any, options: Any) -> dict[str, str]:
        return {}  # pairs of heads are half the heads apart

    def attend(self, call: AttentionCall) -> Tensor:
        implementation = attention_implementation(self.config)
        if implementation not in ("eager", "sdpa", "flex_attention"):
            raise ConfigError(
                f"attn_implementation: {implementation!r} does not support mixer differential, whose values are twice "
                "as wide as its keys; use 'sdpa' or 'eager'"
            )
        wide = torch.cat(call.value.chunk(2, 1), -1).repeat(1, 2, 1, 1)
        return super().attend(replace(call, value=wide))

    def read_out(self, out: Tensor, hidden_states: Tensor, value: Tensor) -> Tensor:
        first, second = out.chunk(2, 2)
        combined = rms_norm(first - self.weight_of_second().to(out.dtype) * second, None, self.config.norm_eps)
        return super().read_out((1 - self.lambda_init) * combined, hidden_states, value)

    def weight_of_second(self) -> Tensor:
        """lambda, a scalar in fp32."""
        first, second = (self.lambda_q1 * self.lambda_k1).sum(), (self.lambda_q2 * self.lambda_k2).sum()
        return torch.exp(first) - torch.exp(second) + self.lambda_init

    def init_weights(self) -> None:
        super().init_weights()
        for weight in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2):
            init.normal_(weight, mean=0.0, std=0.1)

    def pair_flops(self) -> int:
        return 6 * self.num_heads * self.head_dim
