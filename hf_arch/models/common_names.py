"""Names by which other libraries read a config: `num_experts`, `router_aux_loss_coef`, `kv_lora_rank` and their kin.

What Mixtral's or DeepSeek's config says in a field of its own is here an option of a component. TRL, vLLM and others
look for the field: it can be read where every layer that has the option has the same value. The weight of the balance
loss can also be set, as TRL does, and acts on a model that is built already; sizes cannot.
"""

from __future__ import annotations

from math import inf
from typing import Any

from transformers.utils import logging

from ..core.errors import ConfigError
from ..core.registry import FFNS

logger = logging.get_logger(__name__)

READABLE = {
    "num_experts": "num_experts",
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "router_aux_loss_coef": "aux_loss_coef",
    "kv_lora_rank": "kv_lora_rank",
    "q_lora_rank": "q_lora_rank",
    "qk_rope_head_dim": "qk_rope_head_dim",
    "qk_nope_head_dim": "qk_nope_head_dim",
    "v_head_dim": "v_head_dim",
}
"""The field others look for, and the option of a mixer or FFN that it is here."""
WRITABLE = ("router_aux_loss_coef",)


def layer_values(config: Any, option: str) -> list[Any]:
    """The values of an option, of each kind of layer that has it."""
    given = config.__dict__
    if not {"mixer", "ffn", "num_hidden_layers"}.issubset(given) or not isinstance(given["ffn"], (dict, list)):
        return []  # half built
    specs = [*config.mixer_members, *config.ffn_specs]
    return [getattr(options, option) for _, options in specs if hasattr(options, option)]


def read_option(config: Any, name: str) -> Any:
    """The value of field `name` of `READABLE`.

    Raises:
        AttributeError: no layer has such an option, or layers differ in it.
    """
    values = layer_values(config, READABLE[name])
    if not values:
        raise AttributeError(f"{type(config).__name__!r} object has no attribute {name!r}")
    sizes = [size for size in ("num_experts", "num_experts_per_tok") if _differ(config, size)]
    if name in WRITABLE and sizes:
        # TRL then makes no balance loss of its own, which would need one size for all.
        logger.warning_once(
            f"{name}: layers differ in {sizes[0]}, so libraries that compute the balance loss themselves (TRL) train "
            "without it; the model's own loss adds it"
        )
        raise AttributeError(f"{name}: layers differ in {sizes[0]}")
    if any(value != values[0] for value in values):
        raise AttributeError(f"{name}: layers differ ({sorted(set(map(str, values)))}); read each one's options")
    return values[0]


def _differ(config: Any, option: str) -> bool:
    values = layer_values(config, option)
    return any(value != values[0] for value in values)


def write_option(config: Any, name: str, value: Any) -> bool:
    """Set field `name` in the options of every layer that has it; False where none has.

    Raises:
        ConfigError: a size, which the layers are made by, or a weight that is not a number of at least 0.
    """
    option = READABLE[name]
    values = layer_values(config, option)
    if not values:
        return False
    if all(known == value for known in values):
        return True
    if name not in WRITABLE:
        raise ConfigError(
            f"{name}: {value!r} cannot be set on a finished config ({values[0]!r} now); give it to the component, as "
            f"{type(config).__name__}({option}=...)"
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < inf:
        raise ConfigError(f"{name}: {value!r} is not allowed; use a number of at least 0")
    for spec in _specs(config.ffn):
        if option in FFNS.get(spec["type"]).Options.__dataclass_fields__:
            spec[option] = value
    return True


def has_routed_layers(config: Any) -> bool:
    """Whether some layer is a mixture of experts."""
    given = config.__dict__
    return isinstance(given.get("ffn"), (dict, list)) and any(
        FFNS.get(spec["type"]).routed for spec in _specs(given["ffn"])
    )


def aux_loss_coefficients(config: Any, layers: list[int]) -> list[float]:
    """The weight of the balance loss in each of the named layers, as the config has it now."""
    specs = _specs(config.ffn)
    return [specs[layer % len(specs)].get("aux_loss_coef", 0.0) for layer in layers]


def _specs(value: Any) -> list[dict[str, Any]]:
    return value if isinstance(value, list) else [value]
