"""The mixer contract: what a new token mixer must say of itself, in one file, and nothing else.

A mixer is a module registered in `MIXERS` with
- `Options`: a typed dataclass (`@options`), read from the config's nested dict;
- `cache_kind`: what it keeps between tokens; it decides the layer's native transformers cache;
- `forward`: the whole sequence, a later chunk (a filled cache and T > 1), and single steps;
- `cost`: FLOPs of the mixing itself and bytes of state, besides its Linear layers (those are counted from the module);
- `keep_fp32`: parameters of its own that no cast may round (decays, step sizes);
- `init_weights`: its own special parameters, through `transformers.initialization`, so that loading never
  re-initialises them; `inits` and `init_policy` where several sources initialise them differently.

Shape legend: B batch, T time, D width, H heads, K key dim, V value dim, N state, C chunk.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from torch import Tensor

from ...core.errors import ConfigError, choice_error
from ...core.options import Options
from ...ops.compat import exporting_to_onnx
from ..contract import EMPTY_CONTEXT, LayerContext, LayerOutput, check_signature
from ..cost import MixerCost as MixerCost
from ..fp32 import KeepsFp32
from ..initial import InitPolicies
from ..layout import SequenceLayout
from ..state import RECURRENT, LayerState

if TYPE_CHECKING:
    from ...models.configuration import ArchConfig
    from ..rope_parameters import RotarySpec

CacheKind = Literal["kv", "sliding_kv", "latent", "recurrent", "conv", "recurrent+conv", "both"]

_LAYER_TYPES = {
    "kv": "full_attention",
    "latent": "full_attention",
    "sliding_kv": "sliding_attention",
    "recurrent": RECURRENT,
    "conv": RECURRENT,
    "recurrent+conv": RECURRENT,
    "both": "hybrid",
}


class SharedParameters(KeepsFp32):
    """Parameters that several layers have in common: held by the model and called once a forward.

    `forward()` gives a tensor (or list) whose entry i is handed to layer i as `shared`.
    """

    def init_weights(self) -> None:
        """As Mixer.init_weights."""


class SharedSpec(Protocol):
    """Which SharedParameters a layer wants: a hashable value; layers with equal ones share one module.

    A spec may have `first_layer`: layers before it read nothing of what they share (0 where it has none). Where no
    other layer runs there is no module; a model of one layer keeps it, as published checkpoints do.
    """

    def build(self) -> SharedParameters: ...


class Mixer(InitPolicies, KeepsFp32):
    """Base of every token mixer; built as `MixerClass(config, options, layer_idx)`."""

    Options: ClassVar[type[Options]] = Options
    cache_kind: ClassVar[CacheKind]
    label: ClassVar[str] = ""
    """Short name in architecture names such as `12L-12H-768D-GLA`; attention has none."""
    no_weight_decay: ClassVar[tuple[str, ...]] = ()
    """Names of parameters that weight decay must leave alone, besides norms and biases."""
    config_features: ClassVar[tuple[str, ...]] = ()
    """Features of the config (`modeling.configuration.FEATURES`) that it honours; one that no layer does is refused."""
    writes: ClassVar[bool] = True
    """Whether its output goes into the stream; a layer that publishes values alone leaves it as it is."""
    unquantized: ClassVar[tuple[str, ...]] = ()
    """Names of Linear modules that our own quantisation leaves alone, since a faster form reads their plain weight."""

    def __init__(self, config: ArchConfig, options: Any, layer_idx: int):
        super().__init__()
        self.config, self.options, self.layer_idx = config, options, layer_idx

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "cache_kind") and cls.cache_kind not in _LAYER_TYPES:
            raise choice_error(f"{cls.__name__}.cache_kind", cls.cache_kind, _LAYER_TYPES)
        if "__dataclass_fields__" not in vars(cls.Options):
            raise ConfigError(f"{cls.__name__}.Options: {cls.Options.__name__} is not decorated with @options")
        check_signature(cls, "forward")

    @classmethod
    def validate(cls, config: ArchConfig, options: Any) -> None:
        """Raise a ConfigError where the options and the config's sizes do not fit together."""

    @classmethod
    def members(cls, options: Any) -> list[tuple[Any, Any]]:
        """(class, options) of each mixer that it is made of: itself alone, unless it holds others side by side."""
        return [(cls, options)]

    @classmethod
    def further_states(cls, config: ArchConfig, options: Any) -> int:
        """How many states it keeps beyond those that every mixer has a place for (see `FFN_STATE`)."""
        return 0

    @classmethod
    def layer_type(cls, config: ArchConfig, options: Any) -> str:
        """The entry of `config.layer_types`, from which transformers builds this layer's cache."""
        return _LAYER_TYPES[cls.cache_kind]

    @classmethod
    def window(cls, config: ArchConfig, options: Any) -> int | None:
        """Attention window in tokens, or None."""
        return None

    @classmethod
    def takes_prefix(cls, config: ArchConfig, options: Any) -> bool:
        """Whether it follows a mask in which tokens of a prefix see later ones too."""
        return False

    def takes_bands(self) -> bool:
        """Whether `context.attention_mask` may be a `Band` (see `bands.py`) where the window is much shorter than the
        sequence; else it is a mask over all pairs of tokens."""
        return False

    @classmethod
    def fills_cache(cls, config: ArchConfig, options: Any) -> bool:
        """Whether it puts anything into its cache entry; not where it reads the keys of another layer's."""
        return True

    @classmethod
    def rotary(cls, config: ArchConfig, options: Any) -> RotarySpec | None:
        """The rotary embedding whose (cos, sin) this mixer wants as `position_embeddings`, or None."""
        return None

    @classmethod
    def needs_key_positions(cls, config: ArchConfig, options: Any) -> bool:
        """Whether the layer reads `context.keys` (see KeyPositions), which is made for such layers alone."""
        return False

    @classmethod
    def effective(cls, config: ArchConfig, options: Any) -> dict[str, Any]:
        """Everything that decides the outputs, options left to the config resolved; equal layers give equal
        dicts."""
        values = {"class": cls.__name__, **asdict(options)}
        if values.get("num_heads", 0) is None:
            values["num_heads"] = config.num_attention_heads
            if values.get("num_kv_heads", 0) is None:
                values["num_kv_heads"] = config.num_key_value_heads
        if values.get("num_kv_heads", 0) is None:
            values["num_kv_heads"] = values.get("num_heads", config.num_attention_heads)
        return values

    @classmethod
    def shared(cls, config: ArchConfig, options: Any) -> SharedSpec | None:
        """The parameters that this layer has in common with others and wants as `shared`, or None."""
        return None

    @classmethod
    def qkv_widths(cls, config: ArchConfig, options: Any) -> tuple[int, int, int] | None:
        """The channels of its queries, keys and values where `context.at("qkv", x, q, k, v)` is applied to them, else
        None: it then has no such place."""
        return None

    @classmethod
    def value_heads(cls, config: ArchConfig, options: Any) -> int:
        """How many heads the values of `qkv_widths` have."""
        widths = cls.qkv_widths(config, options)
        heads = config.num_key_value_heads or 1
        return heads if widths is not None and widths[2] % heads == 0 else 1

    @classmethod
    def tensor_parallel(cls, config: ArchConfig, options: Any) -> dict[str, str]:
        """How tensor parallelism splits its modules, in transformers' words (`{"q_proj": "colwise"}`); what is not
        named is whole on every rank."""
        return {}

    @classmethod
    def publishes(cls, config: ArchConfig, options: Any, layer_idx: int) -> tuple[str, ...]:
        """Names of the values that the layer hands to later ones in `LayerOutput.published`; a later layer may
        publish the same name anew."""
        return ()

    @classmethod
    def needs(cls, config: ArchConfig, options: Any, layer_idx: int) -> tuple[str, ...]:
        """Names of the values of earlier layers that it reads from `context.values`; a config in which nobody
        publishes one of them is refused."""
        return ()

    def forward(self, hidden_states: Tensor, context: LayerContext = EMPTY_CONTEXT) -> Tensor | LayerOutput:
        """Mix [B, T, D] over time -> [B, T, D], alone or in a LayerOutput; `context` comes by keyword."""
        raise NotImplementedError(f"{type(self).__name__} defines no `forward`")

    def cost(self, seq_len: int) -> MixerCost:
        """See MixerCost."""
        raise NotImplementedError(f"{type(self).__name__} defines no `cost`")

    def init_weights(self) -> None:
        """Initialise the parameters that are neither Linear, Conv nor norm (those follow the config's policy)."""


class RecurrentMixer(Mixer):
    """A mixer that keeps a recurrent or convolution state; subclasses write `mix` and need not think about padding
    or caches.

    `mix(x, layout, state, context)` gets x [B, T, D] with padding set to zero and valid tokens in an order
    without gaps (see SequenceLayout), reads its states from `state` (LayerState; None before the first token) and
    writes the new ones to it. What a bias makes nonzero at padding must be zeroed again with `layout.zero_padding`.
    """

    cache_kind: ClassVar[CacheKind] = "recurrent"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_signature(cls, "mix", own=("layout",))

    def forward(self, hidden_states: Tensor, context: LayerContext = EMPTY_CONTEXT) -> Tensor | LayerOutput:
        layout = context.layout
        if layout.order is not None:
            rotary, values = context.position_embeddings, context.values
            context = context.changed(
                position_embeddings=None if rotary is None else (layout.reorder(rotary[0]), layout.reorder(rotary[1])),
                values={name: layout.reorder(value) for name, value in values.items()},
            )
        if exporting_to_onnx():
            raise ConfigError(
                f"ONNX: {type(self).__name__} cannot be exported (the shapes inside its scan depend on the length); "
                "allowed: mixers of attention. For other programs see `hf-arch export --format gguf`"
            )
        # What sites get inside is in this order already.
        context = context.changed(layout=layout._replace(order=None, inverse=None))
        state = context.state(self.layer_idx)
        out = self.mix(layout.compact(hidden_states), layout, state, context=context)
        if isinstance(out, LayerOutput):
            published = {name: layout.restore(value) for name, value in out.published.items()}
            return LayerOutput(layout.restore(out.hidden_states), published)
        return layout.restore(out)

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor | LayerOutput:
        """The mixing itself: [B, T, D] -> [B, T, D], alone or in a LayerOutput."""
        raise NotImplementedError(f"{type(self).__name__} defines no `mix`")


def divide(total: int, parts: int, field: str, total_name: str) -> int:
    """`total // parts`, or a ConfigError that names the nearest numbers of parts that divide `total`.

    >>> divide(320, 12, "num_attention_heads", "hidden_size")
    Traceback (most recent call last):
    hf_arch.core.errors.ConfigError: num_attention_heads: 12 does not divide hidden_size 320; nearest valid: 10 or 16
    """
    if parts > 0 and total % parts == 0:
        return total // parts
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    below = [n for n in divisors if n <= parts]
    above = [n for n in divisors if n > parts]
    near = " or ".join(str(n) for n in [*below[-1:], *above[:1]])
    raise ConfigError(f"{field}: {parts} does not divide {total_name} {total}; nearest valid: {near}")
