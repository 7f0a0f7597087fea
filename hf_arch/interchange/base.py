"""The two directions of a conversion, and what a family of checkpoints has to say for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..api import config_from_dict
from ..core.errors import ConfigError, nearest
from ..core.registry import FFNS, MIXERS, Registry
from ..models.configuration import ArchConfig
from .directions import layers_of, need_layer, options_to_ours, options_to_theirs, tensor_rules
from .reader import ConfigReader
from .rules import Rule as Rule
from .rules import fused as fused
from .rules import parts as parts
from .rules import same as same
from .rules import shared as shared
from .rules import transposed as transposed
from .table import Entry, Tensors, under
from .unsupported import check_supported

FOREIGN: Registry[Any] = Registry(
    "model_type", "Foreign checkpoints: subclasses of `Converter`, by their model_type.", listing=None
)

# Fields of ours that change neither a model's outputs nor its parameters.
_NO_EFFECT = {
    *("architectures", "transformers_version", "model_type", "dtype", "id2label", "label2id", "use_cache"),
    *(
        "init",
        "initializer_range",
        "rescale_residual_init",
        "loss_chunk_size",
        "classifier_dropout",
        "intermediate_multiple_of",
    ),
    *("pad_token_id", "bos_token_id", "eos_token_id", "_name_or_path", "problem_type"),
}


_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # torch.compile, FSDP


class Converter:
    """A family of checkpoints, one `model_type`. A subclass is registered in `FOREIGN` and is a few tables
    (`table.py`); what they cannot say, it says by a method of its own."""

    architecture: ClassVar[str]
    mixer: ClassVar[str] = ""
    """The mixer that a layer at least has, where `mixer_options` are its own options and not the config's."""
    ffn: ClassVar[str] = ""
    """The same for `ffn_options`."""
    model_options: ClassVar[tuple[Entry, ...]] = ()
    mixer_options: ClassVar[tuple[Entry, ...]] = ()
    ffn_options: ClassVar[tuple[Entry, ...]] = ()
    model_tensors: ClassVar[tuple[Tensors, ...]] = ()
    """By their whole keys."""
    layer_tensors: ClassVar[tuple[Tensors, ...]] = ()
    """By their keys in a layer: behind `model.layers.N` here, `their_layers` there."""
    their_layers: ClassVar[str] = "model.layers"

    defaults: ClassVar[dict[str, Any]] = {}
    """Values of the source's config class, where they are not those of its kind and a config may leave them out."""
    ignored_keys: tuple[str, ...] = ()
    """Endings of keys that hold buffers, not parameters."""
    layout_options: tuple[str, ...] = ()
    """Options of theirs that decide the names or the order of tensors and nothing else; a round trip keeps them."""

    @property
    def model_type(self) -> str:
        """The name under which the family is registered."""
        return next(name for name, family in FOREIGN.items() if family is type(self))

    def config_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        """The model section of a recipe (with `architecture`) that means the same as the foreign config."""
        values = {"architecture": self.architecture, **options_to_ours(self.model_options, reader)}
        if self.mixer:
            values["mixer"] = {"type": self.mixer, **options_to_ours(self.mixer_options, reader)}
        if self.ffn:
            values["ffn"] = {"type": self.ffn, **options_to_ours(self.ffn_options, reader)}
        return values

    def config_to_theirs(self, config: ArchConfig) -> dict[str, Any]:
        """The foreign config of one of our models, as far as it can say it (`to_foreign` checks that it said
        everything)."""
        theirs = options_to_theirs(self.model_options, layers_of(config)[0], config)
        if self.mixer:
            layer = need_layer(config, MIXERS, self.mixer, self.model_type)
            theirs |= options_to_theirs(self.mixer_options, layer, layer.mixer)
        if self.ffn:
            layer = need_layer(config, FFNS, self.ffn, self.model_type)
            theirs |= options_to_theirs(self.ffn_options, layer, layer.ffn)
        return theirs

    def current_names(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under the names that `rules` has, where files may have others."""
        return state_dict

    def rules(self, config: ArchConfig, foreign: dict[str, Any]) -> list[Rule]:
        """Every tensor, for this config."""
        layers = layers_of(config, foreign)
        rules = tensor_rules(self.model_tensors, layers[0])
        for layer in layers:
            names = f"model.layers.{layer.index}", f"{self.their_layers}.{layer.index}"
            rules += tensor_rules(under(*names, *self.layer_tensors), layer)
        return rules


def _converter(model_type: Any) -> Converter:
    if not isinstance(model_type, str):
        raise ConfigError(f"config: no `model_type`; allowed: {', '.join(FOREIGN)}")
    check_supported(model_type)
    return FOREIGN.get(model_type, "model_type")()


def _convert_config(converter: Converter, config: dict[str, Any]) -> ArchConfig:
    reader = ConfigReader({**converter.defaults, **config})
    values = converter.config_to_ours(reader)
    reader.finish()
    if config.get("initializer_range") is not None:
        values.setdefault("initializer_range", config["initializer_range"])
    return config_from_dict(values)


def from_foreign(config: dict[str, Any], state_dict: dict[str, Tensor]) -> PreTrainedModel:
    """Our model with the numbers of a foreign checkpoint, in fp32, in eval mode.

    Args:
        config: the source's configuration with its `model_type` and option names.
        state_dict: the source's tensors under its keys; a tied head may be left out.

    Raises:
        ConfigError: an option that is not supported, a missing, unknown or wrongly shaped tensor; one line.
    """
    for name, given, method in (("config", config, "to_dict"), ("state_dict", state_dict, "state_dict")):
        if not isinstance(given, Mapping):
            hint = f"; give its {method}()" if hasattr(given, method) else ""
            raise ConfigError(f"{name}: {type(given).__name__} is not a dict{hint}")
    converter = _converter(config.get("model_type"))
    ours = _convert_config(converter, config)
    rules = converter.rules(ours, config)
    state_dict = converter.current_names(_plain_names(state_dict, rules))
    head = "lm_head.weight"
    state_dict = _under_every_name(state_dict, rules, head if ours.tie_word_embeddings else None)
    found: dict[str, Tensor] = {}
    for rule in rules:
        missing = [key for key in rule.theirs if key not in state_dict]
        if missing and ours.tie_word_embeddings and rule.ours == (head,):
            continue
        if missing:
            near = nearest(missing[0], state_dict)
            raise ConfigError(f"state_dict: no tensor {missing[0]!r}" + (f"; nearest: {near!r}" if near else ""))
        tensors = [state_dict[key].detach().to(torch.float32) for key in rule.theirs]
        if rule.shared and not all(torch.equal(tensors[0], tensor) for tensor in tensors[1:]):
            raise ConfigError(f"state_dict: {' and '.join(rule.theirs)} differ, but the config says that they are one")
        try:
            found.update(zip(rule.ours, rule.to_ours(tensors), strict=True))
        except (RuntimeError, IndexError) as error:
            shapes = ", ".join(f"{key} {list(tensor.shape)}" for key, tensor in zip(rule.theirs, tensors, strict=True))
            raise ConfigError(f"state_dict: {shapes} does not fit the config ({str(error).splitlines()[0]})") from error
    known = {key for rule in rules for key in rule.theirs}
    unknown = [key for key in state_dict if key not in known and not key.endswith(converter.ignored_keys or "\0")]
    if unknown:
        raise ConfigError(f"state_dict: {unknown[0]!r} has no place in {ours.model_type} ({len(unknown)} such tensors)")
    tied = found.pop(head, None) if ours.tie_word_embeddings else None
    if tied is not None and not torch.equal(tied, found["model.embed_tokens.weight"]):
        raise ConfigError(f"state_dict: {head!r} is not the embeddings' weight; set tie_word_embeddings to false")
    ours.dtype = torch.float32
    model = AutoModelForCausalLM.from_config(ours)
    expected = model.state_dict()
    for key, tensor in found.items():
        if key in expected and tensor.shape != expected[key].shape:
            raise ConfigError(f"state_dict: {key} has shape {list(tensor.shape)}, expected {list(expected[key].shape)}")
    left, extra = model.load_state_dict(found, strict=False)
    assert not extra, f"conversion rules make unknown keys: {extra}"
    left = [key for key in left if not (ours.tie_word_embeddings and key == head)]
    assert not left, f"conversion rules leave out: {left}"
    # Of the instance, not of its config: what it says is about the source, and a saved copy has ours alone.
    vars(model)["source_layout"] = {
        key: config[key] for key in (*converter.layout_options, "model_type") if key in config
    }
    return model.eval()


def _under_every_name(state_dict: dict[str, Tensor], rules: list[Rule], tied_head: str | None) -> dict[str, Tensor]:
    """The tensors with those that were saved under one of their names (as safetensors wants it) under all of them."""
    groups = [rule.theirs for rule in rules if rule.shared]
    if tied_head is not None:
        embeddings = ("model.embed_tokens.weight",)
        groups.append(tuple(rule.theirs[0] for rule in rules if rule.ours in (embeddings, (tied_head,))))
    filled = dict(state_dict)
    for names in groups:
        present = next((state_dict[name] for name in names if name in state_dict), None)
        filled.update({name: present for name in names if present is not None and name not in state_dict})
    return filled


def current_tensors(config: dict[str, Any], state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """A foreign checkpoint's tensors under the names that its library has for them today, where a file has older ones
    or a wrapper's."""
    converter = _converter(config.get("model_type"))
    rules = converter.rules(_convert_config(converter, config), config)
    return converter.current_names(_plain_names(state_dict, rules))


def _plain_names(state_dict: dict[str, Tensor], rules: list[Rule]) -> dict[str, Tensor]:
    """The tensors without what wrappers add to their names, and with the base model's prefix where they lack it."""
    for key, tensor in state_dict.items():
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise ConfigError(f"state_dict: {key!r} is of type {kind}; give the dict of tensors itself")
    plain = {_WRAPPERS.sub("", key): tensor for key, tensor in state_dict.items()}
    if plain and all(key.startswith("module.") for key in plain):  # DistributedDataParallel
        plain = {key.removeprefix("module."): tensor for key, tensor in plain.items()}
    embeddings = next(rule.theirs[0] for rule in rules if rule.ours == ("model.embed_tokens.weight",))
    prefix, _, name = embeddings.partition(".")
    if embeddings not in plain and name in plain:
        plain = {key if key.startswith("lm_head.") else f"{prefix}.{key}": tensor for key, tensor in plain.items()}
    return plain


def to_foreign(model: PreTrainedModel, model_type: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, state dict) of a model of ours in another library's terms; tensors keep their dtype.

    Raises:
        ConfigError: no such `model_type`, or a component that the other library cannot express, by name.
    """
    converter = _converter(model_type)
    config: ArchConfig = model.config
    source = vars(model).get("source_layout", {})
    layout = {
        key: source[key] for key in converter.layout_options if key in source and source["model_type"] == model_type
    }
    theirs = {"model_type": model_type, **converter.config_to_theirs(config), **layout}
    back = _convert_config(converter, theirs)
    difference = _first_difference(_effective(config), _effective(back))
    if difference is not None:
        key, mine, again = difference
        raise ConfigError(f"{key}: {mine!r} cannot be expressed in a {model_type} checkpoint, where it is {again!r}")
    state = model.state_dict()
    result: dict[str, Tensor] = {}
    for rule in converter.rules(config, theirs):
        if config.tie_word_embeddings and rule.ours == ("lm_head.weight",):
            continue
        result.update(zip(rule.theirs, rule.to_theirs([state[key] for key in rule.ours]), strict=True))
    return theirs, result


def _effective(config: ArchConfig) -> dict[str, Any]:
    """What decides a model's outputs: component by component and layer by layer, defaults resolved."""
    values = {key: value for key, value in config.to_dict().items() if key not in _NO_EFFECT}
    # What components resolve: it is compared layer by layer.
    for key in (
        *("mixer", "ffn", "intermediate_size", "head_dim", "num_attention_heads", "num_key_value_heads", "hidden_act"),
        *("attention_bias", "mlp_bias", "qk_norm", "sliding_window", "attn_logit_softcapping", "rope_parameters"),
    ):
        values.pop(key, None)
    if not any(hasattr(mixer, "sizes") and mixer.label == "" for mixer, _ in config.mixer_members):
        del values["attention_dropout"], values["position"]
        if config.position == "none":
            del values["max_position_embeddings"]  # state-space configs have none: nothing depends on it
    values["mixer"] = [mixer.effective(config, options) for mixer, options in config.mixer_specs]
    values["ffn"] = [ffn.effective(config, options) for ffn, options in config.ffn_specs]
    return values


def _first_difference(mine: Any, again: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """(name, ours, theirs) of the first value in which two nested descriptions differ, or None."""
    if isinstance(mine, dict) and isinstance(again, dict) and mine.get("class") == again.get("class"):
        pairs = [(f"{name} {key}".strip(), mine[key], again.get(key)) for key in mine]
    elif isinstance(mine, list) and isinstance(again, list) and len(mine) == len(again):
        pairs = [(f"{name} of layer {index}", *pair) for index, pair in enumerate(zip(mine, again, strict=True))]
    else:
        short = [value.get("class", value) if isinstance(value, dict) else value for value in (mine, again)]
        return None if mine == again else (name, *short)
    return next((found for key, a, b in pairs if (found := _first_difference(a, b, key)) is not None), None)
