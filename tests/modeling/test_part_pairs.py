"""Parts in pairs: each mixer with the sites on its q/k/v, each stream with each order of runs. Right, or refused when
the config is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

import hf_arch
from hf_arch.checks import perturbed_model
from hf_arch.core.errors import ConfigError
from hf_arch.core.registry import MIXERS, STREAMS
from tests.suite.models import close, token_ids

OURS = [name for name in MIXERS if MIXERS[name].__module__.startswith("hf_arch.")]
ON_QKV: list[dict[str, Any]] = [{"sites": {"type": "canon", "at": ["qkv"]}}, {"embeddings": "value"}]
DEPTHS: list[Any] = ["plain", "loop", {"type": "loop", "norm": "final"}, {"type": "cycles", "low_cycles": 2}]


@torch.no_grad()
def _holds(**parts: Any) -> bool:
    """Whether the config is allowed; then chunks and steps give the whole."""
    try:
        config = hf_arch.tiny_config("mixed", **parts)
    except ConfigError:
        return False
    model, ids = perturbed_model(config), token_ids(2, 9)
    whole, cache = model(ids, use_cache=False).logits, DynamicCache(config=config)
    close(torch.cat([model(part, past_key_values=cache).logits for part in ids.split([5, 1, 3], 1)], 1), whole)
    return True


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", OURS)
def test_what_a_mixer_says_of_its_values_is_so(name: str) -> None:
    for parts in ON_QKV:
        _holds(mixer=["attention", name], num_hidden_layers=2, **parts)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", [name for name in STREAMS if STREAMS[name].__module__.startswith("hf_arch.")])
def test_streams_flow_through_every_order_of_runs(name: str) -> None:
    ffns: list[Any] = ["glu", ["glu", "none"]]
    for ffn in ffns:
        ran = [_holds(mixer=["attention", "gla"], num_hidden_layers=4, stream=name, ffn=ffn, depth=d) for d in DEPTHS]
        assert ran[0] or name in ("attention_residual", "weighted")
    _holds(mixer=["attention", "kv_builder", "cross_attention"], num_hidden_layers=3, stream=name)
