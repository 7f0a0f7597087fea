"""FLA's RWKV7."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..layers.ffns.channel_mix7 import ChannelMix7
from ..layers.mixers.base import divide
from ..layers.mixers.rwkv7 import STREAMS, GeneralizedDeltaTimeMix
from ..models.configuration import ArchConfig
from .base import FOREIGN
from .fla import layer_norm
from .fla_linear import FLARWKV6, channel_mix
from .reader import ConfigReader
from .rules import Rule
from .table import Layer, Modules, Option, Tensors

_EXACT_KEY_EPS = 1e-24  # where FLA does not fuse norms, it divides a key by its length alone


def _rank(theirs: str, ours: str, default: int, growth: float, *, of_heads: bool = True) -> Option:
    """The rank of a small projection, which follows the width (and that of a head) where it is null."""

    def read(given: int | None, reader: ConfigReader) -> int:
        share = reader.need("hidden_size") / reader.need("num_heads") / 64 if of_heads else 1.0
        ruled = round(growth * reader.need("hidden_size") ** 0.5 * share / 32) * 32
        return max(32, ruled) if given is None else given

    def write(layer: Layer) -> int:
        return GeneralizedDeltaTimeMix.ranks(layer.config, layer.mixer)[ours]

    return Option(theirs, ours, default, read=read, write=write)


def _stack(tensors: list[Tensor]) -> list[Tensor]:
    """Six [1, 1, D] -> [6, D]."""
    return [torch.cat([tensor.reshape(1, -1) for tensor in tensors])]


def _unstack(tensors: list[Tensor]) -> list[Tensor]:
    """[6, D] -> six [1, 1, D]."""
    return [row.view(1, 1, -1).clone() for row in tensors[0]]


def _later(layer: Layer) -> bool:
    return layer.index > 0


@FOREIGN.register("rwkv7")
class FLARWKV7(FLARWKV6):
    """RWKV6's blocks with another mixer, and a channel mix without receptance."""

    architecture, mixer = "rwkv7", "rwkv7"
    penalises_logits = True
    block_options = channel_mix("channel_mix7", 4)
    layer_tensors = (
        Modules("mixer_norm ffn_norm", "attn_norm ffn_norm", bias=layer_norm),
        Tensors("ffn.key_mix", "ffn.x_k"),
        Modules("ffn.key_proj ffn.down_proj", "ffn.key ffn.value"),
    )
    mixer_options = (
        Option(
            "head_dim",
            None,
            64,
            write=lambda layer: GeneralizedDeltaTimeMix.head_sizes(layer.config, layer.mixer).head_k_dim,
        ),
        _rank("decay_low_rank_dim", "decay_rank", 64, 2.5),
        _rank("gate_low_rank_dim", "gate_rank", 128, 5.0, of_heads=False),
        _rank("a_low_rank_dim", "rate_rank", 64, 2.5),
        _rank("v_low_rank_dim", "value_rank", 16, 1.7),
        Option(
            "fuse_norm",
            "key_eps",
            True,
            read=lambda fuse, _: 1e-6 if fuse else _EXACT_KEY_EPS,
            write=lambda layer: layer.mixer.key_eps != _EXACT_KEY_EPS,
        ),
    )
    mixer_tensors = (
        Tensors(
            "shift_mix",
            " ".join(f"x_{name}" for name in STREAMS),
            layout=lambda _, ours, theirs: Rule(ours, theirs, _stack, _unstack),
        ),
        Tensors("removal_scale rate_scale bonus", "k_k k_a r_k"),
        Modules("q_proj k_proj v_proj o_proj", "r_proj k_proj v_proj o_proj"),
        Modules("o_norm", "g_norm", bias=True),
        Modules("decay.0 rate.0 gate.0 gate.2", "w_lora.lora.0 a_lora.lora.0 g_lora.lora.0 g_lora.lora.2"),
        Modules("decay.2 rate.2", "w_lora.lora.2 a_lora.lora.2", bias=True),
        Modules("value_mix.0", "v_lora.lora.0", when=_later),
        Modules("value_mix.2", "v_lora.lora.2", when=_later, bias=True),
    )

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
        if size is None and heads is None:
            raise ConfigError("config.head_dim: null and num_heads null is not allowed; use an integer >= 1")
        named, parts = ("num_heads", heads) if size is None else ("head_dim", size)
        quotient = divide(hidden, parts, f"config.{named}", "hidden_size")
        heads = heads if size is None else quotient
        reader.only("value_dim", [None, hidden, [hidden] * layers], None)
        reader.config = {**reader.config, "num_heads": heads}
        return super().config_to_ours(reader)

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        theirs = super().config_to_theirs(config)
        if "attn" in theirs:
            raise ConfigError("mixer: a rwkv7 checkpoint cannot have softmax attention in some layers")
        if any(ffn is not ChannelMix7 for ffn, _ in config.ffn_specs):
            raise ConfigError("ffn: a rwkv7 checkpoint has 'channel_mix7' in every layer")
        return theirs
