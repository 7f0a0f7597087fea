"""Keys and values that attention layers share with the next ones: cross-layer attention (Brandon et al. 2024, arXiv
2405.12981).

A layer with `kv: shared` has queries alone and attends to the keys and values that the last layer with `kv: own`
before it made and caches. CLA2 is the pattern `[attention, {type: attention, kv: shared}]`.
"""

from __future__ import annotations

from typing import Any

from ...core.errors import ConfigError

SHARED_KV = ("layer_key", "layer_value", "layer_own_value")
"""What a layer publishes for those that share with it: keys and values of all tokens, the cached ones included,
[B, S, Hkv, K], and the values of this call's tokens [B, T, Hkv, V]."""


def shares(options: Any) -> bool:
    """Whether a layer with these options takes keys and values of an earlier one."""
    return getattr(options, "kv", None) == "shared"


def is_shared_with(config: Any, layer_idx: int) -> bool:
    """Whether a later layer takes the keys and values of this one."""
    return any(source == layer_idx for _, source in sharing_runs(config))


def sharing_runs(config: Any) -> list[tuple[int, int | None]]:
    """(layer that shares, layer whose keys and values it takes or None) for each run of one, in the order of runs."""
    specs, source = config.mixer_specs, None
    found: list[tuple[int, int | None]] = []
    for layer in config.plan:
        given = specs[layer][1]
        if shares(given):
            found.append((layer, source))
        elif hasattr(given, "kv"):
            source = layer
    return found


def check_sharing(config: Any) -> None:
    """Every layer that shares finds keys that suit its queries.

    Raises:
        ConfigError: no layer before it has keys of its own, or they have other heads, rotations or another window.
    """
    specs = config.mixer_specs
    for layer, source in dict.fromkeys(sharing_runs(config)):
        if source is None:
            raise ConfigError(f"kv: 'shared' in layer {layer} needs a layer of attention with kv 'own' before it")
        (mine, my_options), (its, its_options) = specs[layer], specs[source]
        for name, ours, theirs in (
            ("KV heads and head_dim", mine.sizes(config, my_options)[1:], its.sizes(config, its_options)[1:]),
            ("window", mine.window(config, my_options), its.window(config, its_options)),
            ("rotation", _rotation(config, layer), _rotation(config, source)),
        ):
            if ours != theirs:
                raise ConfigError(
                    f"kv: 'shared' in layer {layer} has {name} {ours}, but layer {source}, whose keys and values it "
                    f"takes, has {theirs}; make them equal"
                )


def _rotation(config: Any, layer: int) -> Any:
    mixer, given = config.mixer_specs[layer]
    spec = mixer.rotary(config, given)
    return None if spec is None else spec.key
