"""FLA's RWKV7."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..layers.ffns.channel_mix7 import ChannelMix7
from ..layers.mixers.rwkv7 import STREAMS, GeneralizedDeltaTimeMix
from ..models.configuration import ArchConfig
from .base import FOREIGN, Rule, parts, same
from .fla_linear import FLARWKV6
from .reader import ConfigReader

_EXACT_KEY_EPS = 1e-24  # where FLA does not fuse norms, it divides a key by its length alone


@FOREIGN.register("rwkv7")
class FLARWKV7(FLARWKV6):
    """RWKV6's blocks with another mixer, and a channel mix without receptance."""

    architecture, mixer, hidden_ratio = "rwkv7", "rwkv7", 4
    penalises_logits = True

    def current_names(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Older files hold the six token shifts of a layer in one tensor."""
        result = dict(state_dict)
        for key in [key for key in state_dict if key.endswith(".attn.x_x")]:
            rows = result.pop(key).reshape(len(STREAMS), 1, 1, -1)
            result.update({f"{key[:-1]}{name}": row for name, row in zip(STREAMS, rows, strict=True)})
        return result

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        reader.only("attn", [None], None)  # FLA's RWKV7 cannot run with softmax layers
        hidden, layers = reader.need("hidden_size"), reader.need("num_hidden_layers")
        heads, size = reader.take("num_heads"), reader.take("head_dim", 64)
        heads = hidden // size if size else heads
        if not heads or hidden % heads:
            raise ConfigError(f"config.head_dim: {size!r} does not divide hidden_size {hidden}")
        reader.only("value_dim", [None, hidden, [hidden] * layers], None)
        reader.config = {**reader.config, "num_heads": heads}
        return super().config_to_ours(reader)

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        theirs = super().config_to_theirs(config)
        if "attn" in theirs:
            raise ConfigError("mixer: a rwkv7 checkpoint cannot have softmax attention in some layers")
        return theirs

    def block_to_ours(self, reader: ConfigReader, hidden_size: int) -> dict[str, Any]:
        values = super().block_to_ours(reader, hidden_size)
        return {**values, "ffn": {**values["ffn"], "type": "channel_mix7"}}

    def block_rules(self, config: ArchConfig, layer: str) -> list[Rule]:
        if any(ffn is not ChannelMix7 for ffn, _ in config.ffn_specs):
            raise ConfigError("ffn: a rwkv7 checkpoint has 'channel_mix7' in every layer")
        names = self.norm_names(config)
        return [
            *parts(f"{layer}.mixer_norm", f"{layer}.attn_norm", names),
            *parts(f"{layer}.ffn_norm", f"{layer}.ffn_norm", names),
            same(f"{layer}.ffn.key_mix", f"{layer}.ffn.x_k"),
            same(f"{layer}.ffn.key_proj.weight", f"{layer}.ffn.key.weight"),
            same(f"{layer}.ffn.down_proj.weight", f"{layer}.ffn.value.weight"),
        ]

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        hidden, heads = reader.config["hidden_size"], reader.config["num_heads"]

        def rank(key: str, default: int, growth: float, share: float) -> int:
            value = reader.take(key, default)
            return max(32, round(growth * hidden**0.5 * share / 32) * 32) if value is None else value

        share = hidden / heads / 64
        return {
            "decay_rank": rank("decay_low_rank_dim", 64, 2.5, share),
            "gate_rank": rank("gate_low_rank_dim", 128, 5.0, 1.0),
            "rate_rank": rank("a_low_rank_dim", 64, 2.5, share),
            "value_rank": rank("v_low_rank_dim", 16, 1.7, share),
            "key_eps": 1e-6 if reader.take("fuse_norm", True) else _EXACT_KEY_EPS,
        }

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        return {
            "head_dim": GeneralizedDeltaTimeMix.head_sizes(config, options).head_k_dim,
            "decay_low_rank_dim": options.decay_rank,
            "gate_low_rank_dim": options.gate_rank,
            "a_low_rank_dim": options.rate_rank,
            "v_low_rank_dim": options.value_rank,
            "fuse_norm": options.key_eps != _EXACT_KEY_EPS,
        }

    def mixer_rules(
        self, config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str
    ) -> list[Rule]:
        shifts = Rule((f"{ours}.shift_mix",), tuple(f"{theirs}.x_{name}" for name in STREAMS), _stack, _unstack)
        own = {"removal_scale": "k_k", "rate_scale": "k_a", "bonus": "r_k", "q_proj.weight": "r_proj.weight"}
        own |= {f"{name}_proj.weight": f"{name}_proj.weight" for name in "kvo"}
        rules = [shifts, *(same(f"{ours}.{mine}", f"{theirs}.{their}") for mine, their in own.items())]
        rules += parts(f"{ours}.o_norm", f"{theirs}.g_norm", ("weight", "bias"))
        low_rank = {"decay": "w", "rate": "a", "gate": "g"}
        if not ours.startswith("model.layers.0."):
            low_rank["value_mix"] = "v"
        for mine, their in low_rank.items():
            rules += parts(f"{ours}.{mine}.0", f"{theirs}.{their}_lora.lora.0")
            names = ("weight",) if mine == "gate" else ("weight", "bias")
            rules += parts(f"{ours}.{mine}.2", f"{theirs}.{their}_lora.lora.2", names)
        return rules


def _stack(tensors: list[Tensor]) -> list[Tensor]:
    """Six [1, 1, D] -> [6, D]."""
    return [torch.cat([tensor.reshape(1, -1) for tensor in tensors])]


def _unstack(tensors: list[Tensor]) -> list[Tensor]:
    """[6, D] -> six [1, 1, D]."""
    return [row.view(1, 1, -1).clone() for row in tensors[0]]
