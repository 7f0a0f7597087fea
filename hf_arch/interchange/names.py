"""Names that several families have in common: special tokens, activations, sizes of the model."""

from __future__ import annotations

from .table import Entry, Option, Unused

ACTIVATIONS = {
    **{name: name for name in ("gelu", "silu", "relu", "relu2", "leaky_relu", "sigmoid", "tanh")},
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_tanh"), "gelu_tanh"),
    "gelu_python": "gelu",
    "swish": "silu",
    "linear": "identity",
}
"""transformers' names of activations, and ours."""

COMMON: tuple[Entry, ...] = (
    *(Option(name, absent=True) for name in ("pad_token_id", "bos_token_id", "eos_token_id")),
    Option("initializer_range", None, write=lambda layer: layer.config.initializer_range),
)
"""What every config of transformers' kind has, and no output depends on."""

SIZES: tuple[Entry, ...] = tuple(Option(name, required=True) for name in ("hidden_size", "num_hidden_layers"))

FUSED = Unused("fuse_norm fuse_cross_entropy fuse_linear_cross_entropy criterion")
"""How flash-linear-attention computes."""
