"""Keys and values that attention layers share with the next ones: cross-layer attention (Brandon et al. 2024, arXiv
2405.12981).

A layer with `kv: shared` has queries alone and attends to the keys and values that the last layer with `kv: own`
before it made and caches. CLA2 is the pattern `[attention, {type: attention, kv: shared}]`. With `shared_by_window` it
is the last of those with the layer's own window: Gemma 3n's last layers take those of the last earlier one of their
type, over all tokens or over a window.
"""

from __future__ import annotations

from typing import Any

from ...core.errors import ConfigError

SHARED_KV = ("layer_key", "layer_value", "layer_own_value")
"""What a layer publishes for those that share with it: keys and values of all tokens, the cached ones included,
[B, S, Hkv, K], and the values of this call's tokens [B, T, Hkv, V]."""
_BY_WINDOW = "_of_window_"
_ANY = "any"


def shares(options: Any) -> bool:
    """Whether a layer with these options takes keys and values of an earlier one."""
    return getattr(options, "kv", None) in ("shared", "shared_by_window")


def names_of_source(config: Any, options: Any) -> tuple[str, ...]:
    """Under which names a layer with these options finds the keys and values that it takes, as SHARED_KV."""
    if options.kv != "shared_by_window":
        return SHARED_KV
    window = config.sliding_window if options.window is None else options.window
    return tuple(f"{name}{_BY_WINDOW}{window or 'all'}" for name in SHARED_KV)


def plain_name(name: str) -> str:
    """The entry of SHARED_KV that a name of `names_of_source` is; any other name as it is."""
    return name.partition(_BY_WINDOW)[0]


def shared_names(config: Any, layer_idx: int) -> tuple[str, ...]:
    """Under which names later layers take the keys and values of this one."""
    takers = [layer for layer, source in sharing_runs(config) if source == layer_idx]
    names = (name for layer in takers for name in names_of_source(config, config.mixer_specs[layer][1]))
    return tuple(dict.fromkeys(names))


def sharing_runs(config: Any) -> list[tuple[int, int | None]]:
    """(layer that shares, layer whose keys and values it takes or None) for each run of one, in the order of runs."""
    specs = config.mixer_specs
    sources: dict[Any, int] = {}
    found: list[tuple[int, int | None]] = []
    for layer in config.plan:
        mixer, given = specs[layer]
        if shares(given):
            found.append((layer, sources.get(_ANY if given.kv == "shared" else mixer.window(config, given))))
        elif hasattr(given, "kv"):
            sources[_ANY] = sources[mixer.window(config, given)] = layer
    return found


def check_sharing(config: Any) -> None:
    """Every layer that shares finds keys that suit its queries.

    Raises:
        ConfigError: no layer before it has keys of its own, or they have other heads, rotations or another window.
    """
    specs = config.mixer_specs
    for layer, source in dict.fromkeys(sharing_runs(config)):
        if source is None:
            same = " and the same window" if specs[layer][1].kv == "shared_by_window" else ""
            raise ConfigError(
                f"kv: {specs[layer][1].kv!r} in layer {layer} needs a layer of attention with kv 'own'{same} before it"
            )
        (mine, my_options), (its, its_options) = specs[layer], specs[source]
        for name, ours, theirs in (
            ("KV heads and head_dim", mine.sizes(config, my_options)[1:], its.sizes(config, its_options)[1:]),
            ("window", mine.window(config, my_options), its.window(config, its_options)),
            ("rotation", _rotation(config, layer), _rotation(config, source)),
        ):
            if ours != theirs:
                raise ConfigError(
                    f"kv: {my_options.kv!r} in layer {layer} has {name} {ours}, but layer {source}, whose keys and "
                    f"values it takes, has {theirs}; make them equal"
                )


def _rotation(config: Any, layer: int) -> Any:
    mixer, given = config.mixer_specs[layer]
    spec = mixer.rotary(config, given)
    return None if spec is None else spec.key
