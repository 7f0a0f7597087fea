"""Every value of every component: it changes the model, is causal, works from a cache, and all attention backends
agree."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from hf_arch.core.registry import ACTIVATIONS, FFNS, NORMS, POSITIONS
from hf_arch.layers.norms import ArchRMSNorm, GatedRMSNorm
from hf_arch.layers.positions import alibi_slopes
from hf_arch.ops.rotary import apply_rotary
from tests.suite.models import close, perturbed_model, token_ids

CHOICES = [
    *({"norm": name} for name in NORMS),
    *({"norm_position": name} for name in ("pre", "post", "sandwich", "output", "stream")),
    {"norm_position": ["output", "pre"]},
    {"qk_norm": True, "mixer": {"type": "attention", "qk_norm_over": "all"}},
    *({"hidden_act": name} for name in ACTIVATIONS),
    *({"position": name} for name in POSITIONS),
    *({"ffn": name} for name in FFNS if name not in ("moe", "channel_mix")),
    {"attention_bias": True, "mlp_bias": True},
    {"tie_word_embeddings": True},
    {"qk_norm": True},
    {"attn_logit_softcapping": 2.0},
    {"final_logit_softcapping": 3.0},
    {"sliding_window": 5},
    {"sliding_window": 5, "position": "alibi"},
    {"head_dim": 16},
    {"num_key_value_heads": 1},
    {"embedding_norm": True},
    {
        "position": "rope",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    },
    {
        "mixer": [{"type": "attention", "window": 4}, {"type": "attention", "window": 9}, "attention"],
        "num_hidden_layers": 3,
    },
]


@torch.no_grad()
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_from_a_cache_left_padded_and_causal(choice):
    model, ids = perturbed_model("team", **choice), token_ids(2, 17)
    whole = model(ids, use_cache=False).logits
    cache = DynamicCache(config=model.config)
    close(torch.cat([model(part, past_key_values=cache).logits for part in ids.split([9, 1, 1, 6], 1)], 1), whole, 1e-5)
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), ids], 1)
    mask = (torch.arange(21) >= 4).long().expand(2, -1)
    close(model(padded, attention_mask=mask, use_cache=False).logits[:, 4:], whole, 1e-5)
    changed = ids.clone()
    changed[:, 11] = (changed[:, 11] + 1) % 97
    assert torch.equal(model(changed, use_cache=False).logits[:, :11], whole[:, :11])


@torch.no_grad()
@pytest.mark.parametrize("choice", CHOICES[1:], ids=str)
def test_every_choice_but_the_default_shows(choice):
    ids = token_ids(1, 17)
    default = perturbed_model("team")
    if all(getattr(default.config, key) == value for key, value in choice.items()) or choice == {"ffn": "glu"}:
        pytest.skip("this is the default")
    if choice == {"norm": "rmsnorm_offset"}:
        pytest.skip("the default's function with its weights counted from 1: the same, moved by the same noise")
    assert not torch.equal(perturbed_model("team", **choice)(ids).logits, default(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"position": "alibi"},
        {"sliding_window": 5},
        {"num_key_value_heads": 2},
        {"sliding_window": 5, "position": "alibi"},
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_backends_agree_with_the_formula(choice, backend):
    # Flex attention compiles; a second shape in one process makes it dynamic, which its CPU template cannot compile.
    torch._dynamo.reset()
    if backend == "flex_attention" and "sliding_window" in choice:
        pytest.skip("torch 2.13's CPU template of flex attention gives C++ that does not compile under a windowed mask")
    model, ids = perturbed_model("team", **choice), token_ids(2, 17)
    packed = torch.cat([torch.arange(6), torch.arange(11)])[None].expand(2, -1)
    outputs = {}
    for name in ("eager", backend):
        model.set_attn_implementation(name)
        outputs[name] = [model(ids, use_cache=False).logits, model(ids, position_ids=packed, use_cache=False).logits]
    for actual, expected in zip(outputs[backend], outputs["eager"], strict=True):
        close(actual, expected, 1e-5)


def test_attentions_and_hidden_states_are_returned():
    model, ids = perturbed_model("team"), token_ids(2, 9)
    model.set_attn_implementation("eager")
    out = model(ids, output_attentions=True, output_hidden_states=True)
    assert [weights.shape for weights in out.attentions] == [(2, 4, 9, 9)] * 2
    assert [state.shape for state in out.hidden_states] == [(2, 9, 32)] * 3
    torch.testing.assert_close(out.attentions[0].sum(-1), torch.ones(2, 4, 9))


def test_rmsnorm_is_its_formula_with_exact_gradients():
    norm = ArchRMSNorm(6, 1e-5).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        norm.weight.add_(torch.randn(6, dtype=torch.float64))
    torch.testing.assert_close(norm(x), x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * norm.weight)
    assert torch.autograd.gradcheck(norm, (x,))


def test_gated_norm_norms_first_and_gates_after():
    norm, x, gate = GatedRMSNorm(4), torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(norm(x, gate), ArchRMSNorm(4)(x) * gate * torch.sigmoid(gate))


def test_alibi_slopes_of_the_paper():
    torch.testing.assert_close(alibi_slopes(8), torch.tensor([2.0**-i for i in range(1, 9)]))
    assert alibi_slopes(12).shape == (12,) and alibi_slopes(12).unique().numel() == 12
    torch.testing.assert_close(alibi_slopes(12)[8:], torch.tensor([2.0 ** -(0.5 + i) for i in range(4)]))


def test_rotation_depends_on_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8)
    angles = torch.arange(20.0)[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
    cos, sin = torch.cat([angles, angles], -1).cos()[None], torch.cat([angles, angles], -1).sin()[None]
    turned_q, turned_k = (apply_rotary(x.expand(1, 1, 20, 8), cos, sin)[0, 0] for x in (q, k))
    scores = turned_q @ turned_k.T
    torch.testing.assert_close(scores[5, 2], scores[12, 9])
    torch.testing.assert_close(scores[7, 7], (q * k).sum())
