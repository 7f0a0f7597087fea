"""Mixers and feed-forwards of all architectures, put together at random, keep the invariants too."""

from __future__ import annotations

import json
import random

import pytest

import hf_arch
from hf_arch.checks import check_model
from hf_arch.core.errors import ConfigError
from tests.suite.models import ARCHITECTURES


def _parts(field: str) -> list[dict]:
    """Every mixer (or FFN) with the small options that some architecture's tiny config gives it."""
    values = [getattr(hf_arch.tiny_config(name), field) for name in ARCHITECTURES]
    specs = [spec for value in values for spec in (value if isinstance(value, list) else [value])]
    return [json.loads(text) for text in sorted({json.dumps(spec, sort_keys=True) for spec in specs})]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_nothing_fails_in_a_random_mixture(seed):
    draw = random.Random(seed)
    mixers, ffns = _parts("mixer"), _parts("ffn")
    for _ in range(100):
        choices = {
            "mixer": [draw.choice(mixers) for _ in range(2)],
            "ffn": [draw.choice(ffns) for _ in range(2)],
            "norm": draw.choice(["rmsnorm", "layernorm", "layernorm_nobias"]),
            "norm_position": draw.choice(["pre", "post", "sandwich"]),
            "position": draw.choice(["rope", "none", "alibi", "learned", "sinusoidal"]),
            "tie_word_embeddings": draw.random() < 0.5,
        }
        try:
            config = hf_arch.tiny_config("mixed", num_hidden_layers=4, **choices)
            break
        except ConfigError:  # what would have no effect, or does not go together
            continue
    assert [result for result in check_model(config) if not result.passed] == [], choices
