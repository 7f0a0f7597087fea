"""`ArchConfig`: the one configuration class behind every architecture.

Sizes carry transformers' standard names. A component is a name or a nested dict, read by that component's own options
class (`mixer={"type": "gla", "expand_k": 0.5}`); `mixer` and `ffn` may also be a pattern that repeats over the layers
(`["gla*3", "attention"]`). Options of the mixer and the FFN may be given flat (`expand_k=0.5`) and are stored nested.
An unknown option is an error with the nearest known name.
"""

import copy
from dataclasses import MISSING, field, fields
from math import inf
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..core.bundled import BUNDLED
from ..core.errors import ConfigError, choice_error
from ..core.registry import DEPTHS, EMBEDDINGS, LOSSES, MIXERS, SITES, STREAMS, Registry
from ..deprecations import current_names
from ..layers.activations import ACTIVATIONS
from ..layers.compat import auto_class
from ..layers.depths.base import check_plan
from ..layers.ffns.ffn import FFNS
from ..layers.norms import NORMS
from ..layers.parametrization import PARAMETRIZATIONS
from ..layers.positions import POSITIONS
from ..layers.rope_parameters import check_rope_parameters
from ..layers.sites.base import check_sites, layer_sites
from ..layers.state import FFN_STATE
from .branch_scales import check_branch_scales
from .common_names import READABLE, has_routed_layers, read_option, write_option
from .components import as_list, has_option, normalise, option_names, part_list, resolve, with_type
from .config_init import check_init, resolved_init
from .config_parts import FEATURES, ConfigParts
from .prefixes import check_prefix_lm
from .published import check_published

MAX_LAYERS, MAX_SIZE = 10_000, 2**31 - 1
"""Of one model; a typo above them would be planned for minutes before it fails."""
NORM_POSITIONS = ("pre", "post", "sandwich", "output", "stream")
Component = str | dict[str, Any] | list[Any]
"""A component's name, a dict of its `type` and options, or a pattern of these that repeats over the layers."""
PART_LISTS: dict[str, Registry[Any]] = {"embeddings": EMBEDDINGS, "sites": SITES, "losses": LOSSES}
"""Fields that hold any number of parts, none by default."""
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@strict
class ArchConfig(ConfigParts, PreTrainedConfig):
    """Configuration of a decoder-only language model built from registered components.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, max_position_embeddings: as everywhere in
        transformers. num_key_value_heads: heads of keys and values; None = as many as heads.
        head_dim: None = hidden_size / num_attention_heads; free of both where it is given.
        intermediate_size: width of the FFN; None = the FFN's own rule (`mlp` 4x, `glu` 8/3x rounded up to
        `intermediate_multiple_of`). mixer, ffn: a component, or a pattern over the layers.
        stream: how sublayers read from and write to the residual stream, a `STREAMS` name or dict.
        depth: which layers run how often, a `DEPTHS` name or dict. embeddings, sites, losses: lists of parts of
        `EMBEDDINGS` (besides the token embedding), `SITES` (at places of the block) and `LOSSES` (added in training).
        norm, norm_eps: `NORMS` name; epsilon.
        norm_position: "pre", "post", "sandwich", "output" (of each sublayer's output alone) or "stream" (what a
            sublayer finds is normed and stays so), or a pattern of these over the layers.
        embedding_norm: a norm right after the embeddings. final_norm: a norm before the head (None: wherever the
        last block does not end with one). position: `POSITIONS` name; rope_parameters: as in transformers.
        hidden_act: `ACTIVATIONS` name of the FFN.
        attention_bias, mlp_bias, qk_norm, attn_logit_softcapping, final_logit_softcapping, sliding_window (tokens,
        the own one included): components of attention and head.
        prefix_lm: tokens that a call marks as a prefix see each other both ways (`prefixes.py`).
        embedding_multiplier, residual_multiplier, logits_scaling: Granite's: embeddings and what a sublayer writes are
        multiplied, logits divided (before the cap); the attention scale is an option of the mixer.
        branch_scales: factors of what each layer's mixer and FFN write, one [mixer, FFN] a layer; a control of
        comparisons that `hf-arch run --controls` solves, not a feature of an architecture.
        embedding_dropout, residual_dropout, attention_dropout: probabilities.
        init: whose initial values: "official" (the code that was published with the architecture), "fla" or
            "transformers"; None takes each component's own default (`docs/architectures.md`). Or an `INITS` policy of a
            plugin, by its name or as a dict with its options.
        initializer_range: standard deviation of normal initialisation. rescale_residual_init: divide that of the
            projections which write to the residual stream by sqrt(number of sublayers) (GPT-2); a projection with a
            rule of its own keeps it.
        parametrization: what changes with width and depth, a `PARAMETRIZATIONS` name or dict (muP, CompleteP).
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
    depth: str | dict[str, Any] = "plain"
    embeddings: Component = field(default_factory=list)
    sites: Component = field(default_factory=list)
    losses: Component = field(default_factory=list)
    norm: str = "rmsnorm"
    norm_position: str | list[str] = "pre"
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
    prefix_lm: bool = False
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

    init: str | dict[str, Any] | None = None
    initializer_range: float = 0.02
    rescale_residual_init: bool = False
    loss_chunk_size: int | None = None
    max_logit_penalty: float | int = 0.0
    parametrization: str | dict[str, Any] = "standard"
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
        self.mixer = normalise(self.mixer, MIXERS, "mixer", default_mixer)
        self.ffn = normalise(self.ffn, FFNS, "ffn", default_ffn)
        self.stream = with_type(self.stream, STREAMS, "stream", type(self).stream)
        self.depth = with_type(self.depth, DEPTHS, "depth", type(self).depth)
        self.parametrization = with_type(self.parametrization, PARAMETRIZATIONS, "parametrization", "standard")
        self._take_flat_options(kwargs)
        # Parsed once more, for the types of what came flat; the stored form holds every option that is not "as the
        # config says".
        self.mixer = resolve(self.mixer, MIXERS, "mixer")
        self.ffn = resolve(self.ffn, FFNS, "ffn")
        self.stream = resolve(self.stream, STREAMS, "stream")
        self.depth = resolve(self.depth, DEPTHS, "depth")
        self.parametrization = resolve(self.parametrization, PARAMETRIZATIONS, "parametrization")
        self.init = resolved_init(self)
        for name, registry in PART_LISTS.items():
            setattr(self, name, part_list(getattr(self, name), registry, name))
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
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 0 <= value < inf:
                raise ConfigError(f"{name}: {value!r} is not allowed; use a number above 0, or None for no cap")
        for registry, name in ((NORMS, "norm"), (POSITIONS, "position"), (ACTIVATIONS, "hidden_act")):
            registry.get(getattr(self, name), name)
        for position in as_list(self.norm_position):
            if position not in NORM_POSITIONS:
                raise choice_error("norm_position", position, NORM_POSITIONS)
        if not self.norm_position:
            raise ConfigError(f"norm_position: [] is not allowed; use one of {', '.join(NORM_POSITIONS)}, or several")

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
                for spec in as_list(value)
                if name in option_names(registry.get(spec["type"]))
            ]
            if homes:
                given = kwargs.pop(name)
                for spec in homes:
                    spec[name] = given

    def with_window(self, window: int | None) -> "ArchConfig":
        """A shallow copy whose `sliding_window` is `window`: what transformers' masks and caches read for one layer."""
        view = copy.copy(self)
        view.__dict__["sliding_window"] = window
        return view

    @property
    def per_layer_config(self) -> Any:
        """One config a layer of the cache, from which transformers takes its window."""
        windows, plan = self.windows, self.plan
        plain = plan == list(range(self.num_hidden_layers)) and not self._embeddings_keep_state()
        if plain and all(window == self.sliding_window for window in windows):
            return super().per_layer_config
        views = [self.with_window(windows[layer]) for layer in plan]
        return [*views, self] if self._embeddings_keep_state() else views

    @per_layer_config.setter
    def per_layer_config(self, value: Any) -> None:
        if value is not None:
            raise ConfigError("per_layer_config: give a pattern of components to `mixer` or `ffn` instead")

    @property
    def number_of_conv_states(self) -> int:
        """States that transformers' own hybrid cache layers reserve, of each kind (mixer, FFN, sites)."""
        return self.first_further_state + max(mixer.further_states(self, given) for mixer, given in self.mixer_specs)

    @property
    def first_further_state(self) -> int:
        """The first state behind those of a mixer, the FFN and the sites."""
        sites = max(len(layer_sites(self, layer)) for layer in range(self.num_hidden_layers))
        return FFN_STATE + 1 + sites

    def validate_rope(self) -> None:
        """Nothing: `validate_architecture` checks the rotation that each layer asks for, with its own head_dim."""

    def validate_layer_type(self) -> None:
        """Layer types are derived from the mixers, so there is nothing that could be wrong."""

    def validate_architecture(self) -> None:
        """Checks across fields: every mixer and FFN against the sizes, and the pattern against the number of layers."""
        for name, value in (("mixer", self.mixer), ("ffn", self.ffn), ("norm_position", self.norm_position)):
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
        for position in as_list(self.norm_position):
            if position not in stream.norm_positions:
                raise ConfigError(
                    f"norm_position: {position!r} does not fit stream {stream.label or 'add'}; allowed: "
                    f"{', '.join(stream.norm_positions)}"
                )
        stream.validate(self, stream_options)
        check_init(self)
        check_plan(self)
        parametrization, parametrization_options = self.parametrization_spec
        parametrization.validate(self, parametrization_options)
        for part, part_options in (*self.embedding_specs, *self.loss_specs):
            part.validate(self, part_options)
        check_sites(self, self.site_specs)
        check_branch_scales(self.branch_scales, self.num_hidden_layers)
        check_published(self)
        check_prefix_lm(self)
        self._refuse_idle_features()

    @property
    def inits(self) -> dict[str, str]:
        """{policy: what it says} of all components, the default of the first mixer first."""
        components = [component for component, _ in [*self.mixer_members, *self.ffn_specs]]
        return {name: text for component in components for name, text in component.inits.items()}

    def _refuse_idle_features(self) -> None:
        """A feature that was set, and that no component of any layer takes, is an error."""
        taken = self.features_taken
        rotary = [
            mixer.rotary(self, given)
            for mixer, given in self.mixer_members
            if "rope_parameters" in mixer.config_features
        ]
        if not any(rotary):
            taken.discard("rope_parameters")
        position = POSITIONS.get(self.position, "position")
        if not (position.rotary or position.bias):
            taken.add("position")  # it acts on the embeddings, or not at all
        for name in FEATURES:
            value = getattr(self, name)
            idle = value in (None, False, 0.0, PLAIN_ROPE, _default(type(self), name))
            if name not in taken and not idle:
                names = ", ".join(sorted({spec["type"] for spec in [*as_list(self.mixer), *as_list(self.ffn)]}))
                raise ConfigError(
                    f"{name}: {value!r} would have no effect, since none of {names} takes it; leave it out"
                )


def _default(config_class: Any, name: str) -> Any:
    """What an architecture has where nothing is set."""
    entry = next(entry for entry in fields(config_class) if entry.name == name)
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}: {value!r} is not a whole number; use an integer >= 1")
    if value < 1:
        raise ConfigError(f"{name}: {value} is not allowed; use an integer >= 1")
    largest = MAX_LAYERS if name == "num_hidden_layers" else MAX_SIZE
    if value > largest:
        raise ConfigError(f"{name}: {value} is too large; use an integer from 1 to {largest}")
