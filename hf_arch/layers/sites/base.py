"""The site contract: a small module at a named place of the block, such as a short convolution (Canon layers).

    block_input   what the block gets, before anything else: the stream's first tensor [B, T, D]
    mixer_input   what the mixer gets, after its norm: [B, T, D]
    qkv           queries, keys and values side by side, before they are split into heads, normed or rotated
    ffn_input     what the feed-forward gets, after its norm: [B, T, D]
    ffn_hidden    its projections before the activation: gate and up side by side, or up alone

A site maps [B, T, C] to [B, T, C], C the place's channels. It may keep one state a sequence, in a slot of the layer's
cache entry of its own, behind those of the mixer and the feed-forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ...core.errors import ConfigError, choice_error
from ...core.options import Options, options
from ..contract import ConfiguredPart, LayerContext
from ..ffns.ffn import NoFeedForward
from ..state import FFN_STATE, LayerState

PLACES = ("block_input", "mixer_input", "qkv", "ffn_input", "ffn_hidden")


@options
class SiteOptions(Options):
    """`at`: the places, of `PLACES`. `layers`: the layers' indices, negative ones from the end; None = all."""

    at: list[str] | None = None
    layers: list[int] | None = None


@dataclass(frozen=True)
class Spot:
    """Where one site stands: the layer, the place, its channels and the slot of its state."""

    layer_idx: int
    place: str
    width: int
    slot: int


class Site(ConfiguredPart):
    """Base of every site; built as `SiteClass(config, options, spot)`."""

    Options: ClassVar[type[Options]] = SiteOptions
    places: ClassVar[tuple[str, ...]] = PLACES
    """Where it may stand, and stands where `at` is None."""
    keeps_state: ClassVar[bool] = False
    """Whether it keeps a state between tokens."""

    def __init__(self, config: Any, options: Any, spot: Spot):
        super().__init__(config, options)
        self.spot = spot

    @classmethod
    def stands_at(cls, config: Any, options: Any) -> tuple[str, ...]:
        """Its places, in the order of `PLACES`."""
        at = cls.places if options.at is None else options.at
        return tuple(place for place in PLACES if place in at)

    def state(self, context: LayerContext) -> LayerState:
        """The states of this run of the layer; its own are those of index `self.spot.slot`."""
        return context.state(self.spot.layer_idx)

    def forward(self, x: Tensor, *, source: Tensor, context: LayerContext) -> Tensor:
        """[B, T, C] -> [B, T, C].

        Args:
            source: [B, T, D], what the sublayer was given.
            context: of the layer. A site with a state reads tokens without gaps: `context.layout.compact(x)`, and
                `restore` at its end.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no `forward`")


def chosen_layers(field: str, layers: Sequence[int] | None, config: Any) -> tuple[int, ...]:
    """The layers' indices from 0, in order; None = all.

    Raises:
        ConfigError: one that does not exist, or twice the same.
    """
    count = config.num_hidden_layers
    if layers is None:
        return tuple(range(count))
    for layer in layers:
        if isinstance(layer, bool) or not -count <= layer < count:
            raise ConfigError(f"{field}: layer {layer} is not allowed; use {-count} to {count - 1}", field=field)
    found = [layer % count for layer in layers]
    if not found or len(set(found)) < len(found):
        raise ConfigError(f"{field}: {list(layers)} is not allowed; name each layer once, at least one", field=field)
    return tuple(sorted(found))


def place_width(config: Any, layer_idx: int, place: str) -> int | None:
    """The channels at a place of a layer, None where the layer has no such place."""
    mixer, mixer_options = config.mixer_specs[layer_idx]
    ffn, ffn_options = config.ffn_specs[layer_idx]
    if place in ("block_input", "mixer_input"):
        return config.hidden_size
    if place == "qkv":
        widths = mixer.qkv_widths(config, mixer_options)
        return None if widths is None else sum(widths)
    if ffn is NoFeedForward:
        return None
    return config.hidden_size if place == "ffn_input" else ffn.hidden_width(config, ffn_options)


def check_sites(config: Any, specs: Sequence[tuple[Any, Any]]) -> None:
    """Every site stands at places that exist.

    Raises:
        ConfigError: an unknown place, one that the site cannot take, or one that a layer does not have.
    """
    for site, given in specs:
        name = f"sites {site.__name__}"
        for place in given.at or ():
            if place not in site.places:
                raise choice_error(f"{name} at", place, site.places)
        if given.at is not None and (not given.at or len(set(given.at)) < len(given.at)):
            raise ConfigError(f"{name} at: {given.at} is not allowed; name each place once, at least one")
        for layer in chosen_layers(f"{name} layers", given.layers, config):
            for place in site.stands_at(config, given):
                if place_width(config, layer, place) is None:
                    part = (config.ffn_specs if place.startswith("ffn") else config.mixer_specs)[layer][0]
                    raise ConfigError(
                        f"{name} at: {place!r} is not a place of layer {layer} ({part.__name__} has none); leave it "
                        "out or name other `layers`"
                    )
        site.validate(config, given)


def layer_sites(config: Any, layer_idx: int) -> list[tuple[Any, Any, str]]:
    """(site class, options, place) of every site of a layer: those of the embeddings first, then the config's own."""
    found = [
        (kind, (given, number), kind.place)
        for number, (embedding, given) in enumerate(config.embedding_specs)
        if (kind := embedding.Layer) is not None and layer_idx in embedding.layers(config, given)
    ]
    for site, given in config.site_specs:
        if layer_idx in chosen_layers("layers", given.layers, config):
            found += [(site, given, place) for place in site.stands_at(config, given)]
    return found


def has_site_state(config: Any, layer_idx: int) -> bool:
    """Whether a site of the layer keeps a state."""
    return any(site.keeps_state for site, _, _ in layer_sites(config, layer_idx))


def build_sites(config: Any, layer_idx: int) -> dict[str, list[Site]]:
    """The sites of a layer by place, each with its slot."""
    built: dict[str, list[Site]] = {}
    for number, (site, given, place) in enumerate(layer_sites(config, layer_idx)):
        width = place_width(config, layer_idx, place)
        assert width is not None, "check_sites has seen to it"
        spot = Spot(layer_idx, place, width, FFN_STATE + 1 + number)
        built.setdefault(place, []).append(site(config, given, spot))
    return built
