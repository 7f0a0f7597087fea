"""Every architecture passes what `hf-arch check` holds a user's mixer to.

The fast suite runs it for one of each kind: the other files here hold every architecture to each of the invariants.
"""

from __future__ import annotations

import pytest

import hf_arch
from hf_arch.checks import check_model
from tests.suite.models import ARCHITECTURES, ONE_OF_EACH_KIND

KINDS_FIRST = [pytest.param(name, marks=() if name in ONE_OF_EACH_KIND else pytest.mark.slow) for name in ARCHITECTURES]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", KINDS_FIRST)
def test_nothing_fails(name):
    assert [result for result in check_model(hf_arch.tiny_config(name)) if not result.passed] == []


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("mixer", "ffn"),
    [
        # Several windows of convolutions, and the token before that the FFN keeps.
        (["delta_net", {"type": "gla", "use_short_conv": True}], ["channel_mix7", "channel_mix"]),
        ([{"type": "abc", "use_short_conv": True}, {"type": "attention", "window": 6}], "channel_mix"),
        # Latents in a window, and experts whose rows do not begin at multiples of 16 bytes.
        (
            ["gla", {"type": "mla", "window": 9, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4}],
            {"type": "moe", "num_experts": 3, "intermediate_size": 9},
        ),
        # Latents wider than the heads, which a step pays for; a window of one, whose cache keeps every token.
        (["mla", {"type": "attention", "window": 1}, "attention"], "glu"),
        (["gla", "kv_builder", "cross_attention"], "glu"),
    ],
    ids=["convolutions", "window", "experts", "latents", "shared keys"],
)
def test_nothing_fails_where_layers_are_mixed(mixer, ffn):
    config = hf_arch.tiny_config("mixed", mixer=mixer, ffn=ffn, num_hidden_layers=max(len(mixer), 2))
    assert [result for result in check_model(config) if not result.passed] == []
