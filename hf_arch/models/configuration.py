"""`ArchConfig`: the one configuration class behind every architecture.

Sizes carry transformers' standard names. A component is a name or a nested dict, read by that component's own options
class (`mixer={"type": "gla", "expand_k": 0.5}`); `mixer` and `ffn` may also be a pattern that repeats over the layers
(`["gla*3", "attention"]`). Options of the mixer and the FFN may be given flat (`expand_k=0.5`) and are stored nested.
An unknown option is an error with the nearest known name.
"""

import copy
import re
from dataclasses import fields
from math import inf
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..core.bundled import BUNDLED
from ..core.errors import ConfigError, choice_error
from ..core.options import Options, compact, parse_options
from ..core.registry import MIXERS, STREAMS, Registry
from ..deprecations import current_names
from ..layers.activations import ACTIVATIONS
from ..layers.compat import auto_class
from ..layers.ffns.ffn import FFNS
from ..layers.norms import NORMS
from ..layers.positions import POSITIONS
from ..layers.rope_parameters import check_rope_parameters
from ..layers.state import FFN_STATE
from .branch_scales import check_branch_scales
from .common_names import READABLE, has_routed_layers, read_option, write_option

NORM_POSITIONS = ("pre", "post", "sandwich")
FEATURES = {
    "attention_bias": ("bias", "qkv_bias", "out_bias"),
    "qk_norm": ("qk_norm",),
    "sliding_window": ("window",),
    "attn_logit_softcapping": ("softcap",),
    "attention_dropout": (),
    "mlp_bias": ("bias",),
    "hidden_act": ("hidden_act",),
    "position": ("position",),
    "rope_parameters": (),
}
"""Fields that act through a component, which may have an option instead: without one that takes them they would be
ignored. Sizes are no features: one recipe gives them to architectures of every kind."""
Component = str | dict[str, Any] | list[Any]
"""A component's name, a dict of its `type` and options, or a pattern of these that repeats over the layers."""
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@strict
class ArchConfig(PreTrainedConfig):
    """Configuration of a decoder-only language model built from registered components.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, max_position_embeddings: as everywhere in
        transformers. num_key_value_heads: heads of keys and values; None = as many as heads.
        head_dim: None = hidden_size / num_attention_heads; free of both where it is given.
        intermediate_size: width of the FFN; None = the FFN's own rule (`mlp` 4x, `glu` 8/3x rounded up to
        `intermediate_multiple_of`). mixer, ffn: a component, or a pattern over the layers.
        stream: how sublayers read from and write to the residual stream, a `STREAMS` name or dict.
        norm, norm_position, norm_eps: `NORMS` name; "pre", "post" or "sandwich"; epsilon.
        embedding_norm: a norm right after the embeddings. final_norm: a norm before the head (None: wherever the
        last block does not end with one). position: `POSITIONS` name; rope_parameters: as in transformers.
        hidden_act: `ACTIVATIONS` name of the FFN.
        attention_bias, mlp_bias, qk_norm, attn_logit_softcapping, final_logit_softcapping, sliding_window (tokens,
        the own one included): components of attention and head.
        embedding_multiplier, residual_multiplier, logits_scaling: Granite's: embeddings and what a sublayer writes are
        multiplied, logits divided (before the cap); the attention scale is an option of the mixer.
        branch_scales: factors of what each layer's mixer and FFN write, one [mixer, FFN] a layer; a control of
        comparisons that `hf-arch run --controls` solves, not a feature of an architecture.
        embedding_dropout, residual_dropout, attention_dropout: probabilities.
        initializer_range: standard deviation of normal initialisation; rescale_residual_init: divide that of the
        projections which
            write to the residual stream by sqrt(number of such projections) (GPT-2).
        loss_chunk_size: tokens whose logits are held at once by the training loss; None = chosen by the vocabulary,
        0 = all. max_logit_penalty: pulls each token's largest logit towards 0 in the gradients alone (RWKV trains with
        1e-4). classifier_dropout: of the token-classification head.

    Raises:
        ConfigError: one line with the field, the value, what is allowed and the nearest valid choice.
    """

    base_model_pp_plan: ClassVar[dict[str, Any]] = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]
    frozen_pad_embedding: ClassVar[bool] = True
    """Whether the pad token's embedding gets no gradient, as in Llama; GPT-2 and Mamba train it like any other."""

    vocab_size: int = 32000
    hidden_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    intermediate_multiple_of: int = 256
    max_position_embeddings: int = 2048

    mixer: Component = "attention"
    ffn: Component = "glu"
    stream: str | dict[str, Any] = "add"
    norm: str = "rmsnorm"
    norm_position: str = "pre"
    norm_eps: float = 1e-6
    embedding_norm: bool = False
    final_norm: bool | None = None
    position: str = "rope"
    rope_parameters: dict[str, Any] | None = None
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    attn_logit_softcapping: float | int | None = None
    final_logit_softcapping: float | int | None = None
    embedding_multiplier: float | int = 1.0
    residual_multiplier: float | int = 1.0
    logits_scaling: float | int = 1.0

    branch_scales: list[Any] | None = None

    embedding_dropout: float | int = 0.0
    residual_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    classifier_dropout: float | int = 0.0

    initializer_range: float = 0.02
    rescale_residual_init: bool = False
    loss_chunk_size: int | None = None
    max_logit_penalty: float | int = 0.0
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        if not BUNDLED:
            kwargs.pop("auto_map", None)  # names code that a copy saved from here would not have
        kwargs = self._take_renamed(kwargs)
        self._check_sizes()
        default_mixer, default_ffn = type(self).mixer, type(self).ffn
        self.mixer = _normalise(self.mixer, MIXERS, "mixer", default_mixer)
        self.ffn = _normalise(self.ffn, FFNS, "ffn", default_ffn)
        self.stream = _with_type(self.stream, STREAMS, "stream", type(self).stream)
        self._take_flat_options(kwargs)
        # Parsed once more, for the types of what came flat; the stored form holds every option that is not "as the
        # config says".
        self.mixer = _resolve(self.mixer, MIXERS, "mixer")
        self.ffn = _resolve(self.ffn, FFNS, "ffn")
        self.stream = _resolve(self.stream, STREAMS, "stream")
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self.hidden_size % self.num_attention_heads == 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)
        self.validate_architecture()  # here too, since the strict dataclass wraps what its own call raises

    def _take_renamed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Sets the fields that were given under an old name; returns the rest with options under their new names."""
        known = {f.name for f in fields(self)}
        named = current_names("model", kwargs)
        for name in sorted(set(named) - set(kwargs)):
            if name in known:
                if getattr(self, name) not in (getattr(type(self), name), named[name]):
                    raise ConfigError(f"{name}: {getattr(self, name)!r}, and {named[name]!r} under its old name")
                setattr(self, name, named.pop(name))
        return named

    def _check_sizes(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
        ):
            _positive(name, getattr(self, name))
        for name in (
            "num_key_value_heads",
            "head_dim",
            "intermediate_size",
            "intermediate_multiple_of",
            "sliding_window",
        ):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        for name in ("embedding_dropout", "residual_dropout", "attention_dropout", "classifier_dropout"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ConfigError(f"{name}: {value!r} is not allowed; use a probability in [0, 1)")
        for name in ("norm_eps", "initializer_range", "max_logit_penalty"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 0 <= value < inf:
                raise ConfigError(f"{name}: {value!r} is not allowed; use a number of at least 0")
        for name in ("embedding_multiplier", "residual_multiplier", "logits_scaling"):
            value = getattr(self, name)
            if isinstance(value, bool) or (isinstance(value, (int, float)) and not 0 < value < inf):
                raise ConfigError(f"{name}: {value!r} is not allowed; use a number above 0")
        for registry, name in ((NORMS, "norm"), (POSITIONS, "position"), (ACTIVATIONS, "hidden_act")):
            registry.get(getattr(self, name), name)
        if self.norm_position not in NORM_POSITIONS:
            raise choice_error("norm_position", self.norm_position, NORM_POSITIONS)

    def __getattr__(self, name: str) -> Any:
        if name in READABLE:
            return read_option(self, name)
        if name == "auto_map" and auto_class(type(self)) is None:
            return {}  # no code of its own; TRL asks every config for it whose class transformers does not know
        if name == "output_router_logits" and has_routed_layers(self):
            return False
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in READABLE or not write_option(self, name, value):
            super().__setattr__(name, value)

    def _take_flat_options(self, kwargs: dict[str, Any]) -> None:
        """Move keyword arguments that are options of this config's mixers or FFNs into their dicts."""
        components: tuple[tuple[Any, Registry[Any]], ...] = ((self.mixer, MIXERS), (self.ffn, FFNS))
        for alias, name in READABLE.items():
            if alias != name and alias in kwargs and has_option(components, name):
                if name in kwargs and kwargs[name] != kwargs[alias]:
                    raise ConfigError(
                        f"{alias}: {kwargs[alias]!r} contradicts {name} {kwargs[name]!r}; give one of them"
                    )
                kwargs[name] = kwargs.pop(alias)
        for name in list(kwargs):
            homes = [
                spec
                for value, registry in components
                for spec in _as_list(value)
                if name in option_names(registry.get(spec["type"]))
            ]
            if homes:
                given = kwargs.pop(name)
                for spec in homes:
                    spec[name] = given

    @property
    def mixer_specs(self) -> list[tuple[Any, Any]]:
        """(mixer class, its options) of each layer."""
        return self._layers(self.mixer, MIXERS, "mixer")

    @property
    def ffn_specs(self) -> list[tuple[Any, Any]]:
        """(feed-forward class, its options) of each layer."""
        return self._layers(self.ffn, FFNS, "ffn")

    @property
    def stream_spec(self) -> tuple[Any, Any]:
        """(stream class, its options)."""
        return _parse(self.stream if isinstance(self.stream, dict) else {"type": self.stream}, STREAMS, "stream")

    def _layers(self, value: Any, registry: Registry[Any], field: str) -> list[tuple[Any, Any]]:
        pattern = [_parse(spec, registry, field) for spec in _as_list(value)]
        return [pattern[layer % len(pattern)] for layer in range(self.num_hidden_layers)]

    @property
    def layer_types(self) -> list[str]:
        """One cache layer type per layer, for transformers' caches and masks."""
        types = []
        for (mixer, mixer_options), (ffn, _) in zip(self.mixer_specs, self.ffn_specs, strict=True):
            kind = mixer.layer_type(self, mixer_options)
            if ffn.needs_conv_state and kind in ("full_attention", "sliding_attention"):
                kind = {"full_attention": "hybrid", "sliding_attention": "hybrid_sliding"}[kind]
            types.append(kind)
        return types

    @property
    def windows(self) -> list[int | None]:
        """The attention window of each layer, None where there is none."""
        return [mixer.window(self, mixer_options) for mixer, mixer_options in self.mixer_specs]

    @property
    def base_model_tp_plan(self) -> dict[str, str] | None:
        """How tensor parallelism splits the base model, None where it splits nothing."""
        return self._parallel_plan("tensor_parallel", mixer=self.mixer_specs, ffn=self.ffn_specs)

    @property
    def base_model_ep_plan(self) -> dict[str, str] | None:
        """How expert parallelism splits the base model, None where there are no experts."""
        return self._parallel_plan("expert_parallel", ffn=self.ffn_specs)

    def _parallel_plan(self, kind: str, **parts: list[tuple[Any, Any]]) -> dict[str, str] | None:
        """transformers names layers by `*` only, and two classes may mean different things by one name: what layers of
        several classes do not agree on stays whole."""
        plan: dict[str, str] = {}
        for part, specs in parts.items():
            plans = [getattr(component, kind)(self, component_options) for component, component_options in specs]
            of_one_class = len({component for component, _ in specs}) == 1
            if of_one_class or all(other == plans[0] for other in plans):
                plan |= {f"layers.*.{part}.{module}": style for one in plans for module, style in one.items()}
        return plan or None

    def with_window(self, window: int | None) -> "ArchConfig":
        """A shallow copy whose `sliding_window` is `window`: what transformers' masks and caches read for one layer."""
        view = copy.copy(self)
        view.__dict__["sliding_window"] = window
        return view

    @property
    def per_layer_config(self) -> Any:
        """One config a layer, from which transformers' caches take each layer's window."""
        if all(window == self.sliding_window for window in self.windows):
            return super().per_layer_config
        return [self.with_window(window) for window in self.windows]

    @per_layer_config.setter
    def per_layer_config(self, value: Any) -> None:
        if value is not None:
            raise ConfigError("per_layer_config: give a pattern of components to `mixer` or `ffn` instead")

    @property
    def number_of_conv_states(self) -> int:
        """Convolution states that transformers' own hybrid cache layers reserve (mixer and FFN)."""
        return FFN_STATE + 1

    def validate_rope(self) -> None:
        """Nothing: `validate_architecture` checks the rotation that each layer asks for, with its own head_dim."""

    def validate_layer_type(self) -> None:
        """Layer types are derived from the mixers, so there is nothing that could be wrong."""

    def validate_architecture(self) -> None:
        """Checks across fields: every mixer and FFN against the sizes, and the pattern against the number of layers."""
        for name, value in (("mixer", self.mixer), ("ffn", self.ffn)):
            if isinstance(value, list) and len(value) > self.num_hidden_layers:
                raise ConfigError(
                    f"{name}: the pattern has {len(value)} entries but num_hidden_layers is {self.num_hidden_layers}; "
                    f"shorten it or set num_hidden_layers to {len(value)}"
                )
        for specs in (self.mixer_specs, self.ffn_specs):
            for component, component_options in specs:
                component.validate(self, component_options)
        for mixer, given in self.mixer_specs:
            spec = mixer.rotary(self, given)
            if spec is not None:
                check_rope_parameters(spec)
        stream, stream_options = self.stream_spec
        if self.norm_position not in stream.norm_positions:
            raise ConfigError(
                f"norm_position: {self.norm_position!r} does not fit stream {stream.label or 'add'}; allowed: "
                f"{', '.join(stream.norm_positions)}"
            )
        stream.validate(self, stream_options)
        check_branch_scales(self.branch_scales, self.num_hidden_layers)
        self._check_published_values()
        self._refuse_idle_features()

    def _check_published_values(self) -> None:
        """Every value that a layer needs is published by an earlier one."""
        published: set[str] = set()
        for index, (mixer, mixer_options) in enumerate(self.mixer_specs):
            missing = [name for name in mixer.needs(self, mixer_options, index) if name not in published]
            if missing:
                raise ConfigError(
                    f"mixer: layer {index} ({mixer.__name__}) needs {missing[0]!r}, which no earlier layer publishes; "
                    f"published before it: {', '.join(sorted(published)) or 'nothing'}"
                )
            published.update(mixer.publishes(self, mixer_options, index))

    def _refuse_idle_features(self) -> None:
        """A feature that was set, and that no component of any layer takes, is an error."""
        layers = [*self.mixer_specs, *self.ffn_specs]
        taken = {name for component, given in layers for name in component.config_features if _leaves(name, given)}
        rotary = [mixer.rotary(self, given) for mixer, given in layers if "rope_parameters" in mixer.config_features]
        if not any(rotary):
            taken.discard("rope_parameters")
        position = POSITIONS.get(self.position, "position")
        if not (position.rotary or position.bias):
            taken.add("position")  # it acts on the embeddings, or not at all
        for name in FEATURES:
            value = getattr(self, name)
            idle = value in (None, False, 0.0, PLAIN_ROPE, getattr(type(self), name))
            if name not in taken and not idle:
                names = ", ".join(sorted({spec["type"] for spec in [*_as_list(self.mixer), *_as_list(self.ffn)]}))
                raise ConfigError(
                    f"{name}: {value!r} would have no effect, since none of {names} takes it; leave it out"
                )


def _leaves(feature: str, given: Options) -> bool:
    """Whether a component's options leave a feature to the config."""
    values = [getattr(given, name) for name in FEATURES[feature] if hasattr(given, name)]
    return not values or None in values


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def has_option(components: tuple[tuple[Any, Registry[Any]], ...], name: str) -> bool:
    """Whether one of the given components has such an option."""
    return any(
        name in option_names(registry.get(spec["type"])) for value, registry in components for spec in _as_list(value)
    )


def option_names(component: Any) -> list[str]:
    """Names of the options of a registered component."""
    options_class: type[Options] = component.Options
    return [f.name for f in fields(options_class)]


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}: {value!r} is not a whole number; use an integer >= 1")
    if value < 1:
        raise ConfigError(f"{name}: {value} is not allowed; use an integer >= 1")


def _normalise(value: Any, registry: Registry[Any], field: str, default: Any) -> Any:
    """A name, dict or pattern -> a dict, or a list of dicts with repetitions written out; each a fresh copy with
    its `type`."""
    if isinstance(value, list):
        if not value:
            raise ConfigError(f"{field}: an empty pattern; give at least one of: {', '.join(registry)}")
        return [spec for item in value for spec in _repeat(item, registry, field)]
    return _with_type(value, registry, field, default)


def _repeat(item: Any, registry: Registry[Any], field: str) -> list[dict[str, Any]]:
    if not isinstance(item, str) or "*" not in item:
        return [_with_type(item, registry, field, None)]
    match = re.fullmatch(r"\s*(\w+)\s*\*\s*([1-9]\d*)\s*", item)
    if match is None:
        raise ConfigError(f'{field}: {item!r} is not a pattern entry; write a name, "name*3" or a dict')
    return [_with_type(match[1], registry, field, None) for _ in range(int(match[2]))]


def _with_type(value: Any, registry: Registry[Any], field: str, default: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{field}: {value!r} is neither a name nor a dict with a `type`; allowed: {', '.join(registry)}"
        )
    if "type" not in value:
        if not isinstance(default, str):
            raise ConfigError(f"{field}: the dict has no `type`; allowed: {', '.join(registry)}")
        value = {"type": default, **value}
    registry.get(value["type"], field)
    return dict(value)


def _parse(spec: dict[str, Any], registry: Registry[Any], field: str) -> tuple[Any, Any]:
    component = registry.get(spec["type"], field)
    given = {key: value for key, value in spec.items() if key != "type"}
    return component, parse_options(component.Options, given, f"{field} {spec['type']}")


def _resolve(value: Any, registry: Registry[Any], field: str) -> Any:
    def one(spec: dict[str, Any]) -> dict[str, Any]:
        return {"type": spec["type"], **compact(_parse(spec, registry, field)[1])}

    return [one(spec) for spec in value] if isinstance(value, list) else one(value)
