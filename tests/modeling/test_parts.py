"""Embeddings, sites, depth and losses: every one alone and random mixtures hold every invariant."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

import hf_arch
from hf_arch.checks import cache_bytes, check_model, perturbed_model
from hf_arch.core.errors import ConfigError
from hf_arch.core.registry import DEPTHS, EMBEDDINGS, LOSSES, SITES

IDS = torch.randint(3, 97, (2, 21), generator=torch.Generator().manual_seed(0))
MIXERS = ["gla", {"type": "attention", "window": 8}, "attention", "gated_delta_net"]
PARTS: dict[str, dict[str, Any]] = {
    "smear": {"embeddings": "smear"},
    "bigram": {"embeddings": {"type": "bigram", "table_multiple": 2}},
    "bigram without signs before two layers": {"embeddings": {"type": "bigram", "signs": False, "layers": [0, -1]}},
    "ngram": {"embeddings": {"type": "ngram", "order": 3, "heads": 2}},
    "wide ngram": {"embeddings": {"type": "ngram", "order": 2, "heads": 1, "width": 6, "table_size": 50}},
    "injected ngram": {
        "embeddings": {"type": "injected_ngram", "heads": 1, "width": 8, "kernel_size": 3, "layers": [0, -1]}
    },
    "value": {"embeddings": "value"},
    "scalar value": {"embeddings": {"type": "value", "mix": "scalar", "layers": [0, -1]}},
    "canon": {"sites": "canon"},
    "canon of another kind": {
        "sites": {"type": "canon", "at": ["qkv"], "bias": True, "activation": "silu", "residual": False, "layers": [1]}
    },
    "loop": {"depth": {"type": "loop", "start": 1, "end": 3, "times": 3}},
    "normed loop": {"depth": {"type": "loop", "norm": "each"}},
    "shared": {"depth": {"type": "shared", "group": 1}},
    "exits": {"depth": {"type": "loop", "norm": "final"}, "losses": {"type": "exits", "entropy": 0.05}},
    "exits of a later loop": {"depth": {"type": "loop", "start": 2, "times": 3}, "losses": "exits"},
    "cycles": {"depth": {"type": "cycles", "low": 1, "low_cycles": 2}},
    "truncated cycles": {"depth": {"type": "cycles", "high_cycles": 3, "trained": [2]}},
    "z_loss": {"losses": "z_loss"},
    "multi_token": {"losses": {"type": "multi_token", "depth": 2}},
}  # fmt: skip
TOGETHER = {
    "embeddings": ["smear", {"type": "bigram", "table_multiple": 2}, "value", "ngram"],
    "sites": "canon",
    "depth": {"type": "loop", "start": 1, "end": 2},
    "losses": ["z_loss", "multi_token"],
    "stream": {"type": "hyper", "streams": 2},
}


def config_of(changes: dict[str, Any], **more: Any) -> Any:
    return hf_arch.tiny_config("mixed", **{"mixer": MIXERS, **changes, **more})


def failures(config: Any) -> list[Any]:
    return [result for result in check_model(config) if not result.passed]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", PARTS)
def test_every_part_holds_every_invariant(name: str):
    assert not failures(config_of(PARTS[name]))


def test_every_registered_part_is_tried():
    tried = {key: set() for key in ("embeddings", "sites", "depth", "losses")}
    for changes in PARTS.values():
        for key, value in changes.items():
            tried[key].add(value if isinstance(value, str) else value["type"])
    plain = {"depth": {"plain"}}
    for key, registry in zip(tried, (EMBEDDINGS, SITES, DEPTHS, LOSSES), strict=True):
        ours = {name for name in registry if registry[name].__module__.startswith("hf_arch.")}
        assert tried[key] | plain.get(key, set()) == ours


@pytest.mark.rest
def test_all_together_hold_every_invariant():
    assert not failures(config_of(TOGETHER))
    assert not failures(config_of(TOGETHER, tie_word_embeddings=True, stream="parallel", embedding_norm=True))


def random_parts(seed: int) -> dict[str, Any]:
    """A random mixture of parts on random mixers and feed-forwards."""
    draw = random.Random(seed)
    lists: dict[str, list[Any]] = {"embeddings": [], "sites": [], "losses": []}
    changes: dict[str, Any] = {}
    for name in draw.sample(sorted(PARTS), 5):
        for key, value in PARTS[name].items():
            if key in lists:
                lists[key].append(value)
            else:
                changes[key] = value
    mixers = ["attention", "gla", "gated_delta_net", "rwkv6", "mamba", "retnet", "hgrn2", "forgetting_transformer"]
    return {
        **changes,
        **lists,
        "mixer": [draw.choice(mixers) for _ in range(4)],
        "ffn": [draw.choice(["glu", "mlp", "rwkv6"]) if seed % 2 else "glu" for _ in range(2)],
        "stream": draw.choice(["add", "parallel", "scaled", "gated", "gated_streams", "hyper", "mhc"]),
        "position": draw.choice(["rope", "none", "alibi", "learned"]),
        "norm_position": draw.choice(["pre", "sandwich"]),
        "tie_word_embeddings": draw.random() < 0.5,
    }


@pytest.mark.rest
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 40))])
def test_random_mixtures_hold_every_invariant(seed: int):
    for attempt in range(100):
        changes = random_parts(1000 * attempt + seed)
        try:
            config = hf_arch.tiny_config("mixed", num_hidden_layers=4, **changes)
            break
        except ConfigError:  # what would have no effect, or does not go together
            continue
    assert not failures(config), changes


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [*PARTS, "together"])
def test_costs_are_those_counted(name: str):
    """FLOPs of products, forward, prefill, step and training, and the bytes of the cache."""
    changes = TOGETHER if name == "together" else PARTS[name]
    config = hf_arch.tiny_config(
        "mixed",
        **{**changes, "mixer": "attention", "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 192},
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    # The counter does not see depthwise convolutions: a few in a hundred at this width.
    near = 0.03 if any(name in str(changes) for name in ("canon", "injected")) else 1e-3
    ids, cost, cache = IDS, hf_arch.cost(config, 21, batch_size=2), DynamicCache(config=config)

    def counted(run: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    with torch.no_grad():
        forward = counted(lambda: model(ids, use_cache=False))
        assert forward == pytest.approx(42 * cost.flops_per_token_forward, rel=near)
        model(ids, past_key_values=cache)
        assert cost.state_bytes(21) == cache_bytes(cache)
        step = counted(lambda: model(ids[:, :1], past_key_values=cache))
        assert step == pytest.approx(cost.decode_flops(21), rel=near)
    model.train()
    trained = counted(lambda: model(ids, labels=ids, use_cache=False).loss.backward())
    assert trained == pytest.approx(42 * cost.flops_per_token_train, rel=near)
    assert cost.params_total == model.num_parameters()
    assert cost.params_embedding == model.num_parameters() - model.num_parameters(exclude_embeddings=True)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [*PARTS, "together"])
def test_a_static_cache_gives_the_same(name: str):
    model = perturbed_model(config_of(TOGETHER if name == "together" else PARTS[name]))
    whole = model(IDS, use_cache=False).logits
    cache = StaticCache(config=model.config, max_cache_len=32)
    with torch.no_grad():
        parts = [model(part, past_key_values=cache).logits for part in IDS.split([9, 5, 1, 6], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-4 * max(1, whole.abs().max().item()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": "smeer"}, "embeddings: 'smeer' is not known; nearest: 'smear'"),
        ({"embeddings": {"type": "smear", "gate": 1}}, "embeddings smear: unknown key 'gate'"),
        ({"sites": {"type": "canon", "at": ["qvk"]}}, "at: 'qvk' is not known; nearest: 'qkv'"),
        ({"sites": {"type": "canon", "at": ["block_input"]}}, "at: 'block_input' is not known"),
        ({"sites": {"type": "canon", "layers": [4]}}, "layer 4 is not allowed; use -4 to 3"),
        ({"sites": "canon", "mixer": ["mamba", "attention"]}, "'qkv' is not a place of layer 0"),
        ({"sites": "canon", "ffn": "none"}, "'ffn_input' is not a place of layer 0"),
        ({"embeddings": "value", "mixer": "rwkv6"}, "layer 1 .* has no values of its own"),
        ({"embeddings": {"type": "ngram", "width": 30}}, "30 is not a multiple of the 4 heads; nearest valid: 32"),
        ({"depth": {"type": "loop", "start": 3, "end": 2}}, "use 0 <= start < end <= 4"),
        ({"depth": {"type": "loop", "times": 1}}, "depth loop times: 1 is not allowed"),
        ({"depth": {"type": "shared", "group": 3}}, "does not divide num_hidden_layers 4; nearest valid: 2|4"),
        (
            {"depth": {"type": "loop", "norm": "final"}, "stream": "scaled"},
            "norm 'final': stream 'scaled' is not supported",
        ),
        ({"depth": {"type": "loop", "norm": "final"}, "final_norm": False}, "the model has no final norm; use 'each'"),
        ({"depth": "cycles", "stream": "hyper"}, "depth cycles: stream 'hyper' is not supported"),
        ({"depth": {"type": "cycles", "low": 4}}, "depth cycles low: 4 of 4 layers is not allowed; use 1 to 3"),
        ({"depth": {"type": "cycles", "high_cycles": 0}}, "depth cycles high_cycles: 0 is not allowed"),
        (
            {"depth": {"type": "cycles", "trained": [1, 2, 3]}},
            r"trained: \[1, 2, 3\] is not allowed; use 1 to 2 numbers",
        ),
        ({"depth": {"type": "cycles", "trained": [4]}}, "numbers from 1 to 3, the low cycles"),
        ({"losses": "exits"}, "losses exits: depth 'plain' has one exit, the last layer; use depth loop"),
        ({"losses": "exits", "depth": {"type": "loop", "end": 2}}, "losses exits: depth 'loop' has one exit"),
        ({"losses": {"type": "exits", "entropy": -1.0}, "depth": "loop"}, "losses exits entropy: -1.0 is not allowed"),
        ({"depth": "loop", "stream": "unet"}, "depth: stream UNet counts layers"),
        ({"losses": {"type": "z_loss", "coefficient": 0.0}}, "losses z_loss coefficient: 0.0 is not allowed"),
        ({"losses": {"type": "multi_token", "depth": 0}}, "losses multi_token depth: 0 is not allowed"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        config_of(changes)


def test_token_ids_are_asked_for():
    for changes in ({"embeddings": "value"}, {"embeddings": "bigram"}, {"embeddings": "ngram"}):
        model = perturbed_model(config_of(changes))
        with pytest.raises(ValueError, match="pass input_ids"):
            model(inputs_embeds=model.model.embed_tokens(IDS))
    model = perturbed_model(config_of({"embeddings": "smear"}))
    embedded = model(inputs_embeds=model.model.embed_tokens(IDS)).logits
    torch.testing.assert_close(embedded, model(IDS).logits)
