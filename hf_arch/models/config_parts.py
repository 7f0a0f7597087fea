"""What a config says of its parts: their classes and options, the order of runs, and the caches that follow."""

from typing import Any

from ..core.options import Options
from ..core.registry import DEPTHS, EMBEDDINGS, FFNS, INITS, LOSSES, MIXERS, PARAMETRIZATIONS, SITES, STREAMS, Registry
from ..layers.sites.base import has_site_state, layer_sites
from ..layers.state import RECURRENT
from .components import as_list, parse

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
_PROJECTIONS = {"mixer": "qkv", "ffn": "ffn_hidden"}
"""The place of sites among each part's projections."""


class ConfigParts:
    """Base of `ArchConfig` that reads the parts its fields name."""

    mixer: Any
    ffn: Any
    stream: Any
    depth: Any
    embeddings: Any
    sites: Any
    losses: Any
    parametrization: Any
    init: Any
    num_hidden_layers: int
    norm_position: Any
    final_norm: bool | None

    @property
    def mixer_specs(self) -> list[tuple[Any, Any]]:
        """(mixer class, its options) of each layer."""
        return self._layers(self.mixer, MIXERS, "mixer")

    @property
    def mixer_members(self) -> list[tuple[Any, Any]]:
        """(mixer class, its options) of every mixer of every layer, those side by side in one layer apart."""
        return [member for mixer, given in self.mixer_specs for member in mixer.members(given)]

    @property
    def ffn_specs(self) -> list[tuple[Any, Any]]:
        """(feed-forward class, its options) of each layer."""
        return self._layers(self.ffn, FFNS, "ffn")

    @property
    def features_taken(self) -> set[str]:
        """Names of the features that a component of some layer reads from the config, since its options leave them."""
        layers = [*self.mixer_members, *self.ffn_specs]
        return {name for component, given in layers for name in component.config_features if _leaves(name, given)}

    @property
    def stream_spec(self) -> tuple[Any, Any]:
        """(stream class, its options)."""
        return parse(self.stream if isinstance(self.stream, dict) else {"type": self.stream}, STREAMS, "stream")

    @property
    def depth_spec(self) -> tuple[Any, Any]:
        """(depth class, its options)."""
        return parse(self.depth if isinstance(self.depth, dict) else {"type": self.depth}, DEPTHS, "depth")

    @property
    def parametrization_spec(self) -> tuple[Any, Any]:
        """(parametrisation class, its options)."""
        given = self.parametrization if isinstance(self.parametrization, dict) else {"type": self.parametrization}
        return parse(given, PARAMETRIZATIONS, "parametrization")

    @property
    def init_spec(self) -> tuple[Any, Any] | None:
        """(policy class, its options) where a plugin's policy is named; None where components follow their rules."""
        return parse(self.init, INITS, "init") if isinstance(self.init, dict) else None

    @property
    def embedding_specs(self) -> list[tuple[Any, Any]]:
        """(class, options) of each part of `embeddings`."""
        return [parse(spec, EMBEDDINGS, "embeddings") for spec in as_list(self.embeddings)]

    @property
    def site_specs(self) -> list[tuple[Any, Any]]:
        """(class, options) of each part of `sites`."""
        return [parse(spec, SITES, "sites") for spec in as_list(self.sites)]

    @property
    def loss_specs(self) -> list[tuple[Any, Any]]:
        """(class, options) of each part of `losses`."""
        return [parse(spec, LOSSES, "losses") for spec in as_list(self.losses)]

    @property
    def plan(self) -> list[int]:
        """The layers in the order of their runs."""
        depth, given = self.depth_spec
        return depth.plan(self, given)

    @property
    def norm_positions(self) -> list[str]:
        """Where the norms of each layer stand."""
        pattern = as_list(self.norm_position)
        return [pattern[layer % len(pattern)] for layer in range(self.num_hidden_layers)]

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm stands behind the last layer: where nothing else is said, unless that layer ends in one."""
        if self.final_norm is not None:
            return self.final_norm
        return self.norm_positions[-1] != "post" and not self.stream_spec[0].norms_what_it_gives

    def _layers(self, value: Any, registry: Registry[Any], field: str) -> list[tuple[Any, Any]]:
        pattern = [parse(spec, registry, field) for spec in as_list(value)]
        return [pattern[layer % len(pattern)] for layer in range(self.num_hidden_layers)]

    @property
    def layer_types(self) -> list[str]:
        """One cache layer type per run of a layer, for transformers' caches, and one for the states of embeddings."""
        kinds = self.layer_kinds
        types = [kinds[layer] for layer in self.plan]
        return [*types, RECURRENT] if self._embeddings_keep_state() else types

    @property
    def layer_kinds(self) -> list[str]:
        """The cache layer type of each layer."""
        kinds = []
        for index, ((mixer, given), (ffn, _)) in enumerate(zip(self.mixer_specs, self.ffn_specs, strict=True)):
            kind = mixer.layer_type(self, given)
            if kind in ("full_attention", "sliding_attention"):
                keeps = ffn.needs_conv_state or has_site_state(self, index)
                kind = {"full_attention": "hybrid", "sliding_attention": "hybrid_sliding"}[kind] if keeps else kind
            kinds.append(kind)
        return kinds

    def _embeddings_keep_state(self) -> bool:
        return any(part.keeps_state for part, _ in self.embedding_specs)

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
        """transformers names layers by `*` only, so a part is split in all layers or stays whole: where classes do not
        agree on the meaning of a name, where the options of one layer cannot be split, and where a site among the
        projections expects the channels of all heads."""
        inside = {place for layer in range(self.num_hidden_layers) for _, _, place in layer_sites(self, layer)}
        plan: dict[str, str] = {}
        for part, specs in parts.items():
            if _PROJECTIONS[part] in inside:
                continue
            distinct = [spec for number, spec in enumerate(specs) if spec not in specs[:number]]
            plans = [getattr(component, kind)(self, component_options) for component, component_options in distinct]
            of_one_class = len({_classes(spec) for spec in specs}) == 1
            if (of_one_class and all(plans)) or all(other == plans[0] for other in plans):
                plan |= {f"layers.*.{part}.{module}": style for one in plans for module, style in one.items()}
        return plan or None


def _classes(spec: tuple[Any, Any]) -> tuple[Any, ...]:
    """The component of a layer, and what it holds side by side."""
    component, given = spec
    members = component.members(given) if hasattr(component, "members") else ()
    return (component, *(member for member, _ in members))


def _leaves(feature: str, given: Options) -> bool:
    """Whether a component's options leave a feature to the config."""
    values = [getattr(given, name) for name in FEATURES[feature] if hasattr(given, name)]
    return not values or None in values
