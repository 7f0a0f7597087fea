"""What a layer is given and what it gives back, as types.

The decoder works everything out once per model call (masks by kind, positions, rotary embeddings, documents, padding)
and hands each layer one `LayerContext`. A layer returns its hidden states alone, or a `LayerOutput` where it also
publishes values for later layers or routes tokens to experts.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.options import Options
from ..ops.compat import is_hooked
from ..ops.one_row import RowKernels
from .compat import CACHE_ARGUMENT
from .cost import MixerCost
from .fp32 import KeepsFp32
from .growing_keys import append_keys
from .key_positions import KeyPositions
from .layout import PLAIN_LAYOUT, SequenceLayout
from .state import LayerState


@dataclass(frozen=True)
class LayerContext:
    """What a mixer or feed-forward may need besides its hidden states [B, T, D].

    Attributes:
        layout: padding and documents of the batch.
        attention_mask: of this layer's kind, as transformers makes it for the attention implementation; None = causal;
            a `Band` for a mixer that `takes_bands`.
        position_ids: [B or 1, T] int64.
        position_embeddings: (cos, sin), each [B or 1, T, R] of this layer's rotary embedding, or None.
        position_bias: [B, H, T, S], added to attention scores (ALiBi), or None; [1, H, C, W] with a `Band`.
        keys: where the keys of this layer are, the cached ones included; None unless it `needs_key_positions`.
        cache: transformers' cache of the whole model, or None; `state` and `update_kv` reach this layer's entry.
        execution: the cache entry of this run of the layer, where layers run several times; None = its own index.
        first_state: the index at which the mixer's states begin in its cache entry, for mixers side by side; None: 0,
            and no other mixer's follow.
        shared: this layer's entry of parameters shared among layers (`Mixer.shared`), or None.
        values: what earlier layers published, by the names that this layer `needs`; each [B, T, ...].
        sites: the modules at each named place of this block (`sites/base.py`); `at` applies them and takes them out, so
            that the block sees which were not.
        attention_kwargs: further arguments for transformers' attention functions.
        row: kernels that may take the place of torch's operations in a decoding step of one token on a CPU, where
            nobody watches and no gradient is needed; None elsewhere. A layer need not look.
    """

    layout: SequenceLayout = PLAIN_LAYOUT
    attention_mask: Any = None
    position_ids: Tensor | None = None
    position_embeddings: tuple[Tensor, Tensor] | None = None
    position_bias: Tensor | None = None
    keys: KeyPositions | None = None
    cache: Any = None
    execution: int | None = None
    first_state: int | None = None
    shared: Any = None
    values: Mapping[str, Tensor] = field(default_factory=dict)
    sites: dict[str, Any] = field(default_factory=dict)
    attention_kwargs: Mapping[str, Any] = field(default_factory=dict)
    row: RowKernels | None = None

    def changed(self, **values: Any) -> LayerContext:
        """A copy with other values; as `dataclasses.replace`, which takes four times as long."""
        if torch.compiler.is_compiling():
            return replace(self, **values)
        copied = object.__new__(LayerContext)
        copied.__dict__.update(self.__dict__, **values)
        return copied

    def at(self, place: str, source: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """`tensors`, each [B, T, C], after the modules that stand at this place; they see them side by side.

        Args:
            source: [B, T, D], what the sublayer was given.
        """
        modules = self.sites.pop(place, ())
        if not modules:
            return tensors
        joined = tensors[0] if len(tensors) == 1 else torch.cat(tensors, -1)
        for module in modules:
            joined = module(joined, source=source, context=self)
        return joined.split([tensor.shape[-1] for tensor in tensors], -1)

    def state(self, layer_idx: int) -> LayerState:
        """The recurrent and convolution states of this run of layer `layer_idx`."""
        return LayerState(self.cache, layer_idx if self.execution is None else self.execution, self)

    def update_kv(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, T, K] with the cached ones before them; as they are without a cache."""
        if self.cache is None:
            # Continuous batching passes its pages on to the attention function, which fills them itself until 5.23.
            pages = self.attention_kwargs.get("cache") if CACHE_ARGUMENT == "cache" else None
            return (
                (key, value) if pages is None else pages.update(key, value, layer_idx, kwargs={**self.attention_kwargs})
            )
        return append_keys(self.cache, layer_idx if self.execution is None else self.execution, key, value)

    def replace_keys(self, key: Tensor, layer_idx: int) -> None:
        """Put keys [B, H, S, K] in the place of all that the cache holds of this layer."""
        layer = self.cache.layers[layer_idx if self.execution is None else self.execution]
        if layer.is_compileable:
            layer.keys.copy_(key)  # a static cache keeps its address
        else:
            layer.keys = key
        layer.crop = _refuse_to_crop  # keys that later tokens have changed cannot be what they were before those

    def to(self, device: Any, non_blocking: bool = False) -> LayerContext:
        """A copy with every tensor on `device` and the cache where it is; accelerate calls it for a model that is
        spread over devices."""
        kept = ("cache", "sites")
        moved = {
            f.name: _moved(getattr(self, f.name), device, non_blocking) for f in fields(self) if f.name not in kept
        }
        return replace(self, **moved | {"row": None})


def _refuse_to_crop(tokens_to_remove: int) -> None:
    if tokens_to_remove:
        raise RuntimeError(f"changed keys cannot take {abs(tokens_to_remove)} tokens back; start a new cache")


def _moved(value: Any, device: Any, non_blocking: bool) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, Mapping):
        return {name: _moved(item, device, non_blocking) for name, item in value.items()}
    if isinstance(value, tuple):
        items = [_moved(item, device, non_blocking) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


EMPTY_CONTEXT = LayerContext()
"""A plain batch: no padding, no documents, no cache, no positions."""


@dataclass(frozen=True)
class LayerOutput:
    """What a layer gives back where hidden states are not all of it.

    Attributes:
        hidden_states: [B, T, D].
        published: values for later layers, by name; exactly the names that the layer `publishes`.
        router_logits: [B T, E] of a layer that routes tokens to experts, or None.
    """

    hidden_states: Tensor
    published: Mapping[str, Tensor] = field(default_factory=dict)
    router_logits: Tensor | None = None

    @classmethod
    def of(cls, out: Tensor | LayerOutput) -> LayerOutput:
        """`out` as a LayerOutput; hidden states alone are one that publishes nothing."""
        return out if isinstance(out, LayerOutput) else cls(out)


class Part(KeepsFp32):
    """Base of whatever can be put into a model by name: it initialises its own parameters and counts its own cost."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ()
    """Names of parameters that weight decay must leave alone, besides norms and biases."""

    def init_weights(self) -> None:
        """Initialise the parameters that are neither Linear, Conv nor norm (those follow the config's policy)."""

    def cost(self, seq_len: int) -> MixerCost:
        """What it costs beyond its Linear layers, for one sequence of `seq_len` tokens."""
        return MixerCost()


class CalledByMethod(Part):
    """A part whose methods run inside a call of the module, `part("read", state, site)`, so that whatever hooks calls
    (offloading, sharding) finds its parameters in place."""

    def forward(self, method: str, *args: Any) -> Any:
        """What the method of that name gives."""
        return getattr(self, method)(*args)

    def run(self, method: str, *args: Any) -> Any:
        """The same as a call, without what that costs where there is nothing to bring in place and nobody listens: a
        step of decoding makes six of them a layer."""
        if self._parameters or self._modules or self._buffers or self.is_hooked():
            return self(method, *args)
        return getattr(self, method)(*args)

    def is_hooked(self) -> bool:
        """Whether somebody listens to its calls."""
        return is_hooked(self)


class ConfiguredPart(Part):
    """A part with options of its own; built as `PartClass(config, options)`."""

    Options: ClassVar[type[Options]] = Options
    label: ClassVar[str] = ""
    """What architecture names such as `12L-12H-768D-RoPE` add for it; nothing for the default."""

    def __init__(self, config: Any, options: Any):
        super().__init__()
        self.config, self.options = config, options

    @classmethod
    def validate(cls, config: Any, options: Any) -> None:
        """Raise a ConfigError where the options and the config do not fit together."""


_IN_CONTEXT = {f.name: f.name for f in fields(LayerContext)} | {
    "past_key_values": "cache",
    "use_cache": "cache",
    "carry": "values",
}


def check_signature(cls: type, method: str, own: tuple[str, ...] = ()) -> None:
    """Refuse a layer whose `method` expects parts of the context as arguments of its own: they would stay at their
    defaults.

    Raises:
        ConfigError: names the argument and the attribute of the context to read in its place.
    """
    if method not in vars(cls):
        return
    for name in inspect.signature(vars(cls)[method]).parameters:
        if name in _IN_CONTEXT and name not in own:
            raise ConfigError(
                f"{cls.__name__}.{method}: {name!r} is not passed as an argument; take `context: LayerContext` and "
                f"read `context.{_IN_CONTEXT[name]}`"
            )
