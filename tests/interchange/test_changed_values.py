"""Each value of a checkpoint's config changed by itself: the converted model computes the same, or that is refused.

A value that a converter does not read would be lost without a word; here every number, switch and choice of every
family is one that somebody may have set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import hf_arch
from hf_arch.core.errors import ConfigError
from tests.interchange import test_transformers, test_transformers_hybrids
from tests.interchange.test_transformers import _random, _rope

CONFIGS: dict[str, Any] = {}
for _module in (test_transformers, test_transformers_hybrids):
    for _config in _module.CONFIGS.values():
        CONFIGS.setdefault(_config.model_type, _config)
FAST = ("llama", "granite", "cohere")
TRAINING_ALONE = ("dropout", "pdrop", "initializer", "router_aux", "time_step", "use_mamba_kernels", "pad_token")
ROPES: list[dict[str, Any]] = [
    _rope(rope_type="default", rope_theta=300.0),
    _rope(rope_type="default", partial_rotary_factor=0.5),
    _rope(rope_type="linear", factor=2.0),
    _rope(rope_type="dynamic", factor=2.0),
    _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=0.7, beta_slow=2),
]


def others(key: str, value: Any) -> list[Any]:
    """Other values for one of a config."""
    if key == "rope_parameters":
        return ROPES
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value * 2, value + 1 if isinstance(value, int) else value * 0.7 + 0.05]
    if isinstance(value, str):
        return ["relu", "gelu"] if "act" in key else []
    return [5, 0.5, True] if value is None else []


def changed_configs(config: Any) -> Iterator[tuple[str, Any]]:
    """(what is changed, the config) of those that transformers can make a model of."""
    given = config.to_dict()
    for key, value in given.items():
        if key == "vocab_size" or any(part in key for part in TRAINING_ALONE):
            continue
        for other in others(key, value):
            yield f"{key}={other!r}", {**given, key: other}


@pytest.mark.parametrize(
    "family", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_a_changed_value_is_followed_or_refused(family: str) -> None:
    ids = torch.randint(3, 97, (1, 24), generator=torch.Generator().manual_seed(1))
    compared, refused = 0, 0
    for change, values in changed_configs(CONFIGS[family]):
        try:
            source = _random(type(CONFIGS[family]).from_dict(values))
            with torch.no_grad():
                expected = source(ids, use_cache=False).logits
        except Exception:  # no such model in transformers: sizes that do not fit, a value of another kind
            continue
        if not expected.isfinite().all():
            continue
        try:
            ours = hf_arch.from_foreign(source.config.to_dict(), source.state_dict())
        except ConfigError:
            refused += 1
            continue
        with torch.no_grad():
            found = ours(ids, use_cache=False).logits
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 * scale, msg=lambda text: f"{change}: {text}")  # noqa: B023
        compared += 1
    assert compared >= 10, (compared, refused)
