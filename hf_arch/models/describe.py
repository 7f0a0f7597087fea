"""What a config is, for people: a name such as `12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm`, and a table of its
components."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import Any

from ..layers.positions import POSITIONS, Position
from .config_parts import FEATURES
from .configuration import ArchConfig

_NORM_LABELS = {"rmsnorm": "RMS", "layernorm": "LN", "layernorm_nobias": "LNnb"}
_GLU_LABELS = {"silu": "SwiGLU", "gelu": "GeGLU", "gelu_tanh": "GeGLU", "relu": "ReGLU"}
_ACTIVATION_LABELS = {
    "gelu": "GELU",
    "gelu_tanh": "GELU",
    "silu": "SiLU",
    "relu": "ReLU",
    "relu2": "ReLU2",
    "leaky_relu": "LReLU",
}


def describe(config: ArchConfig) -> tuple[str, list[tuple[str, str]]]:
    """(architecture name, [(component, value), ...]) of a config."""
    return architecture_name(config), component_table(config)


def architecture_name(config: ArchConfig) -> str:
    """Layers, heads, width, then the components, joined by hyphens."""
    parts = [f"{config.num_hidden_layers}L", f"{config.num_attention_heads}H", f"{config.hidden_size}D"]
    mixers = [_mixer_label(mixer, options) for mixer, options in config.mixer_specs]
    attends = ["Attn" in mixer.split("|") for mixer in mixers]
    if set(mixers) != {"Attn"}:
        parts.append("+".join(_runs(mixers)) if len(set(mixers)) > 1 else mixers[0])
    position = POSITIONS.get(config.position, "position")
    if _embeds(position):
        parts.append(position.label)
    elif any(attends):
        kinds = [POSITIONS.get(kind, "position").label for kind in _layer_positions(config)]
        parts.append("+".join(dict.fromkeys(kind for kind, attending in zip(kinds, attends, strict=True) if attending)))
    parts.append(_NORM_LABELS.get(config.norm, config.norm))
    feed_forwards = [_ffn_label(config, ffn, options) for ffn, options in config.ffn_specs]
    parts.append("+".join(dict.fromkeys(feed_forwards)))
    parts.append("+".join(_runs([f"{position.capitalize()}Norm" for position in config.norm_positions])))
    beside = [*config.embedding_specs, *config.site_specs, *config.loss_specs]
    labels = [
        component.label
        for component, _ in (config.stream_spec, config.depth_spec, *beside, config.parametrization_spec)
    ]
    parts += filter(None, dict.fromkeys(labels))
    return "-".join(parts)


def _mixer_label(mixer: Any, options: Any) -> str:
    """`Attn`, `GLA`; `Attn|Mamba2` for mixers side by side."""
    return "|".join(member.label or "Attn" for member, _ in mixer.members(options))


def _runs(labels: list[str]) -> list[str]:
    """The shortest repeating pattern of labels, runs counted: 3 GLA, 1 Attn, repeated -> ["3xGLA", "Attn"]."""
    for size in range(1, len(labels) + 1):
        if all(label == labels[index % size] for index, label in enumerate(labels)):
            labels = labels[:size]
            break
    counted = [(label, len(list(group))) for label, group in groupby(labels)]
    return [label if count == 1 else f"{count}x{label}" for label, count in counted]


def _ffn_label(config: ArchConfig, ffn: Any, options: Any) -> str:
    act = getattr(options, "hidden_act", None) or config.hidden_act
    if ffn.label == "GLU":
        return _GLU_LABELS.get(act, "GLU")
    if ffn.label == "MLP":
        return _ACTIVATION_LABELS.get(act, act)
    return ffn.label


def _embeds(position: type[Position]) -> bool:
    """Whether a position encoding is added to the embeddings: no layer has to take it."""
    return position.embed is not Position.embed


def _layer_positions(config: ArchConfig) -> list[str]:
    """Which position encoding acts inside each layer's mixer: "rope" where it rotates, the config's bias, or "none"."""
    bias = POSITIONS.get(config.position, "position").bias

    def of_layer(mixer: Any, options: Any) -> str:
        if mixer.rotary(config, options) is not None:
            return "rope"
        takes = "position" in mixer.config_features and getattr(options, "position", None) is None
        return config.position if bias and takes else "none"

    return [of_layer(mixer, options) for mixer, options in config.mixer_specs]


def _position(config: ArchConfig) -> str:
    """The position encodings that act, with the number of layers where not all of them have it."""
    layers = _layer_positions(config)
    acting = [config.position] if _embeds(POSITIONS.get(config.position, "position")) else []
    for kind in dict.fromkeys(layers):
        count = layers.count(kind)
        if kind != "none":
            acting.append(kind if count == len(layers) else f"{kind} in {count} of {len(layers)} layers")
    return ", ".join(acting) or "none"


def _member_with(feature: str, spec: tuple[Any, Any]) -> tuple[Any, Any]:
    """Of a layer with mixers side by side the first that takes a feature; any other component as it is."""
    component, options = spec
    members = component.members(options) if hasattr(component, "members") else [spec]
    return next((member for member in members if feature in member[0].config_features), spec)


def _taken(config: ArchConfig, specs: list[tuple[Any, Any]], feature: str) -> list[Any]:
    """What each layer makes of a feature of the config: the value of its own option, else the config's where it reads
    that, else None."""
    values = []
    for component, options in map(partial(_member_with, feature), specs):
        given = [getattr(options, name, None) for name in FEATURES[feature]]
        reads = getattr(config, feature) if feature in component.config_features else None
        values.append(next((value for value in given if value is not None), reads))
    return values


def _ffn_widths(config: ArchConfig) -> list[str]:
    """The intermediate size of each layer's feed-forward, its rule worked out; of a mixture, one expert's."""

    def of_layer(ffn: Any, options: Any) -> str:
        if ffn.absent:
            return "none"
        if not hasattr(options, "intermediate_size"):
            return "its own"  # a plugin's, which has no such option
        return f"{ffn.width(config, options)}{' an expert' if ffn.routed else ''}"

    return [of_layer(ffn, options) for ffn, options in config.ffn_specs]


def component_table(config: ArchConfig) -> list[tuple[str, str]]:
    """Every component with the value that acts, for start-up reports and comparisons: a field of the config that no
    layer reads is not in it, and what differs by layer is listed by layer."""

    def spec(value: Any) -> str:
        if isinstance(value, list):
            return ", ".join(_runs([spec(item) for item in value]))
        given = ", ".join(f"{key}={item}" for key, item in value.items() if key != "type")
        return f"{value['type']} ({given})" if given else value["type"]

    def on_off(value: Any) -> str:
        return "off" if value is None or value is False else "on" if value is True else str(value)

    def of_mixers(feature: str) -> str:
        return ", ".join(_runs([on_off(value) for value in _taken(config, config.mixer_specs, feature)]))

    def of_ffns(feature: str) -> str:
        return ", ".join(_runs([on_off(value) for value in _taken(config, config.ffn_specs, feature)]))

    windows = [on_off(mixer.window(config, options) or None) for mixer, options in config.mixer_specs]
    activations = [value or "none" for value in _taken(config, config.ffn_specs, "hidden_act")]
    attention_dropout = [f"{value or 0:g}" for value in _taken(config, config.mixer_specs, "attention_dropout")]
    return [
        ("architecture", config.model_type.removeprefix("hfa_")),
        ("layers", str(config.num_hidden_layers)),
        ("width", str(config.hidden_size)),
        ("heads", f"{config.num_attention_heads} (KV {config.num_key_value_heads}, head_dim {config.head_dim})"),
        ("mixer", spec(config.mixer)),
        ("ffn", spec(config.ffn)),
        ("ffn width", ", ".join(_runs(_ffn_widths(config)))),
        ("activation", ", ".join(_runs(activations))),
        ("norm", f"{config.norm}, {' + '.join(_runs(config.norm_positions))}, eps {config.norm_eps:g}"),
        ("stream", spec(config.stream)),
        ("depth", spec(config.depth)),
        ("embeddings", spec(config.embeddings) or "none"),
        ("sites", spec(config.sites) or "none"),
        ("losses", spec(config.losses) or "none"),
        ("parametrization", spec(config.parametrization)),
        ("position", _position(config)),
        ("window", ", ".join(_runs(windows))),
        ("qk_norm", of_mixers("qk_norm")),
        ("biases", f"attention {of_mixers('attention_bias')}, mlp {of_ffns('mlp_bias')}"),
        (
            "soft caps",
            f"attention {of_mixers('attn_logit_softcapping')}, logits {on_off(config.final_logit_softcapping)}",
        ),
        (
            "dropout",
            f"embedding {config.embedding_dropout:g}, residual {config.residual_dropout:g}, "
            f"attention {', '.join(_runs(attention_dropout))}",
        ),
        ("tied head", on_off(config.tie_word_embeddings)),
        ("vocabulary", str(config.vocab_size)),
        ("max length", str(config.max_position_embeddings)),
        (
            "init",
            _init(config),
        ),
    ]


def _init(config: ArchConfig) -> str:
    """The general rule; `orthogonal (gain=0.5) over ` before it for a policy of a plugin, which is asked afterwards."""
    rescaled = ", residual rescaled" if config.rescale_residual_init else ""
    general = f"N(0, {config.initializer_range:g}){rescaled}"
    if not isinstance(config.init, dict) or config.init_spec is None:
        return general
    policy, given = config.init_spec
    options = ", ".join(f"{key}={value}" for key, value in vars(given).items())
    return f"{policy.label or config.init['type']}{f' ({options})' if options else ''} over {general}"
