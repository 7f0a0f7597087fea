"""Each embedding, site and depth equals its formula, written out token by token."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers.models.qwen4_exp.modeling_qwen4_exp import Qwen4ExpTextPLELayer

from hf_arch.layers.contract import LayerContext, LayerOutput
from hf_arch.layers.embeddings.bigram import pair_signs
from hf_arch.layers.embeddings.hashing import splitmix64
from tests.modeling.test_streams import IDS, model_of

CONTEXT = LayerContext()


def layers_of(model: Any, x: torch.Tensor, order: Any = None) -> torch.Tensor:
    for index in range(len(model.model.layers)) if order is None else order:
        layer = model.model.layers[index]
        x = x + LayerOutput.of(layer.mixer(layer.mixer_norm(x), context=CONTEXT)).hidden_states
        x = x + layer.ffn(layer.ffn_norm(x), context=CONTEXT)
    return x


def logits_of(model: Any, x: torch.Tensor) -> torch.Tensor:
    return model.lm_head(model.model.norm(x))


def test_smear_is_its_formula():
    model = model_of("add", embeddings="smear")
    part, x = model.model.embeddings[0], model.model.embed_tokens(IDS)
    rows = [x[:, 0]]
    for t in range(1, x.shape[1]):
        rows.append(x[:, t] + part.amount * torch.sigmoid(x[:, t, :24] @ part.gate[0])[:, None] * x[:, t - 1])
    torch.testing.assert_close(model(IDS).logits, logits_of(model, layers_of(model, torch.stack(rows, 1))))


def test_bigram_is_its_formula():
    model = model_of("add", embeddings={"type": "bigram", "table_multiple": 2, "layers": [0]})
    part, x = model.model.embeddings[0], model.model.embed_tokens(IDS)
    size = part.table.num_embeddings
    rows = []
    for t in range(IDS.shape[1]):
        if t == 0:
            number, pair = torch.full((2,), size - 1), IDS[:, 0]
        else:
            number, pair = ((36313 * IDS[:, t]) ^ (27191 * IDS[:, t - 1])) % (size - 1), IDS[:, t] ^ IDS[:, t - 1]
        rows.append(part.table(number) * pair_signs(pair % 8192, x.shape[-1]))
    amount = model.model.layers[0].sites["block_input"][0].amount
    torch.testing.assert_close(model(IDS).logits, logits_of(model, layers_of(model, x + amount * torch.stack(rows, 1))))


def test_signs_look_random():
    signs = pair_signs(torch.arange(8192), 64)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.mean().abs() < 0.01
    assert (signs[:1000] @ signs[:1000].T / 64 - torch.eye(1000)).abs().max() < 0.8


def test_hashes_are_those_published():
    """The first outputs of splitmix64 seeded with 1234567, from the reference implementation."""
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    golden = 0x9E3779B97F4A7C15
    assert [splitmix64((1234567 + golden * index) % 2**64) for index in range(3)] == wanted


def test_ngram_is_its_formula():
    model = model_of("add", embeddings={"type": "ngram", "order": 3, "heads": 2, "table_size": 50}, eos_token_id=2)
    ids = IDS.clone()
    ids[0, 4] = 2  # what comes before the end of a sequence is not seen after it
    part, x = model.model.embeddings[0], model.model.embed_tokens(ids)
    assert part.sizes == [53, 59, 61, 67]
    offsets = [0, 53, 112, 173]

    def wrapped(value: int) -> int:
        return (value + 2**63) % 2**64 - 2**63

    added = torch.zeros_like(x)
    for row in range(2):
        for t in range(ids.shape[1]):
            seen, ended = [int(ids[row, t])], False
            for lag in (1, 2):
                ended = ended or t - lag < 0 or int(ids[row, t - lag]) == 2
                seen.append(2 if ended else int(ids[row, t - lag]))
            gathered = []
            for order in (2, 3):
                key = 0
                for lag in range(order):
                    key ^= wrapped(seen[lag] * part.factors[lag])
                for head in range(2):
                    number = 2 * (order - 2) + head
                    gathered.append(part.table.weight[key % part.sizes[number] + offsets[number]])
            added[row, t] = part.proj(torch.cat(gathered))
    torch.testing.assert_close(model(ids).logits, logits_of(model, layers_of(model, x + added)))


@torch.no_grad()
def test_injected_ngrams_are_those_of_transformers():
    """Rows, gate and dilated convolution of its layer, for one stream."""
    given = {
        "type": "injected_ngram",
        "order": 3,
        "heads": 2,
        "width": 8,
        "seed": 7,
        "layers": [0, -1],
        "table_size": 50,
    }
    model = model_of("add", "llama", embeddings=given, num_hidden_layers=3, eos_token_id=5)
    config = SimpleNamespace(
        hidden_size=model.config.hidden_size,
        hc_count=1,
        ple_embed_dim=8,
        ple_conv_kernel_size=4,
        ngram_size=3,
        heads_per_ngram=2,
        vocab_size=model.config.vocab_size,
        eos_token_id=5,
        ngram_vocab_size_base=50,
        make_ngram_vocab_size_divisible_by=1,
        seed=7,
        rms_norm_eps=model.config.norm_eps,
    )
    ids = IDS.clone()
    ids[0, 4] = 5
    given_to = model.model.embeddings[0](model.model.embed_tokens(ids), ids, CONTEXT).layers
    for number, layer in enumerate((0, 2)):
        [site] = model.model.layers[layer].sites["block_input"]
        theirs = Qwen4ExpTextPLELayer(config, layer, number)
        theirs.ple_embedding.ngram_embedding.weight.copy_(model.model.embeddings[0].tables[str(layer)].weight)
        for ours, name in ((site.key_proj, "key_proj"), (site.value_proj, "value_proj")):
            getattr(theirs, name).weight.copy_(ours.weight)
        for ours, name in ((site.key_norm, "norm_key"), (site.query_norm, "norm_query"), (site.conv_norm, "norm_conv")):
            getattr(theirs, name).weight.copy_(ours.weight - 1)  # theirs is the offset from 1
        theirs.conv1d.weight.copy_(site.taps.unsqueeze(1))
        x = torch.randn(*ids.shape, model.config.hidden_size)
        context = CONTEXT.changed(values={site.name: given_to[layer]})
        torch.testing.assert_close(site(x, source=x, context=context), x + theirs(x, ids, None), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mix", ["gate", "scalar"])
def test_value_embedding_is_its_formula(mix: str):
    model = model_of(
        "add", "llama", embeddings={"type": "value", "mix": mix, "layers": [1]}, position="none", qk_norm=False
    )
    part, x = model.model.embeddings[0], model.model.embed_tokens(IDS)
    x = layers_of(model, x, [0])
    layer, site = model.model.layers[1], model.model.layers[1].sites["qkv"][0]
    h, rows = layer.mixer_norm(x), part.tables["1"](IDS)
    mixer = layer.mixer
    q, k, v = (proj(h) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    if mix == "gate":
        gate = 3 * torch.sigmoid(h[..., :12] @ site.gate.T)
        v = v + (rows.view(*rows.shape[:2], mixer.num_kv_heads, -1) * gate[..., None]).flatten(-2)
    else:
        v = (1 - site.amount) * v + site.amount * rows
    q, k, v = (each.unflatten(-1, (-1, mixer.head_dim)).transpose(1, 2) for each in (q, k, v))
    heads = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    x = x + mixer.o_proj(heads.transpose(1, 2).flatten(-2))
    x = x + layer.ffn(layer.ffn_norm(x), context=CONTEXT)
    torch.testing.assert_close(model(IDS).logits, logits_of(model, x))


@pytest.mark.parametrize(
    ("mixer", "heads"),
    [
        ({"type": "attention", "num_heads": 4, "num_kv_heads": 1}, 1),
        ({"type": "attention", "num_heads": 8}, 8),
        ({"type": "shared_key", "num_heads": 2}, 2),
        ({"type": "gated_delta_net", "num_heads": 2, "num_v_heads": 6, "head_dim": 8}, 6),
    ],
    ids=str,
)
def test_value_embedding_has_a_gate_for_each_value_head_of_its_layer(mixer: dict[str, Any], heads: int):
    model = model_of("add", "mixed", mixer=[mixer, "attention"], embeddings={"type": "value", "layers": [0]})
    assert model.model.layers[0].sites["qkv"][0].gate.shape == (heads, 12)


@torch.no_grad()
def test_canon_b_stands_behind_a_norm_of_all_heads():
    """Before the heads are split, after what norms queries and keys as a whole."""
    sites = {"type": "canon", "at": ["qkv"]}
    attention = {"type": "attention", "qk_norm": True, "qk_norm_over": "all"}
    mixer = model_of("add", "llama", mixer=attention, sites=sites, position="none", qk_norm=False).model.layers[0].mixer
    x, seen = torch.randn(2, 7, mixer.config.hidden_size), []

    def at(place: str, source: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.extend(tensors)
        return tensors

    mixer.project(x, SimpleNamespace(at=at, position_embeddings=None, values={}))
    for tensor, proj, norm in zip(seen, (mixer.q_proj, mixer.k_proj), (mixer.q_norm, mixer.k_norm), strict=False):
        flat = proj(x)
        expected = flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + norm.eps)
        torch.testing.assert_close(tensor, expected * norm.weight.flatten())


def test_canon_is_its_formula_at_every_place():
    model = model_of("add", "llama", sites="canon", position="none", qk_norm=False)

    def canon(site: Any, x: torch.Tensor) -> torch.Tensor:
        weight = site.conv.weight[:, 0]
        rows = []
        for t in range(x.shape[1]):
            total = x[:, t]
            for lag in range(4):
                if t - lag >= 0:
                    total = total + weight[:, 3 - lag] * x[:, t - lag]
            rows.append(total)
        return torch.stack(rows, 1)

    x = model.model.embed_tokens(IDS)
    for layer in model.model.layers:
        sites, mixer = {place: sites[0] for place, sites in layer.sites.items()}, layer.mixer
        h = canon(sites["mixer_input"], layer.mixer_norm(x))
        joined = torch.cat([mixer.q_proj(h), mixer.k_proj(h), mixer.v_proj(h)], -1)
        widths = [proj.out_features for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj)]
        split = canon(sites["qkv"], joined).split(widths, -1)
        q, k, v = (each.unflatten(-1, (-1, mixer.head_dim)).transpose(1, 2) for each in split)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + mixer.o_proj(heads.transpose(1, 2).flatten(-2))
        h, ffn = canon(sites["ffn_input"], layer.ffn_norm(x)), layer.ffn
        gate, up = canon(sites["ffn_hidden"], torch.cat([ffn.gate_proj(h), ffn.up_proj(h)], -1)).chunk(2, -1)
        x = x + ffn.down_proj(F.silu(gate) * up)
    torch.testing.assert_close(model(IDS).logits, logits_of(model, x))


def test_depth_is_its_plan():
    for depth, plan in (
        ({"type": "loop", "start": 1, "end": 3, "times": 2}, [0, 1, 2, 1, 2, 3]),
        ({"type": "shared", "group": 2, "times": 2}, [0, 1, 0, 1, 2, 3, 2, 3]),
        ({"type": "shared", "times": 3}, [0, 1, 2, 3] * 3),
    ):
        model = model_of("add", depth=depth, num_hidden_layers=4)
        assert model.config.plan == plan
        x = layers_of(model, model.model.embed_tokens(IDS), plan)
        torch.testing.assert_close(model(IDS).logits, logits_of(model, x))


def test_initial_values_are_those_published():
    model = model_of("add", "llama", embeddings=["smear", "value", "bigram", "ngram"], sites="canon")
    fresh = type(model)(model.config)
    smear, value, bigram, ngram = fresh.model.embeddings
    assert smear.amount == 0 and smear.gate.min() >= 0 and smear.gate.max() <= 0.02
    assert value.tables["1"].weight.std().item() == pytest.approx(32**-0.5, rel=0.05)
    assert not bigram.table.weight.any() and not ngram.proj.weight.any()
    conv = fresh.model.layers[0].sites["qkv"][0].conv.weight
    assert 0.4 < conv.abs().max() <= 0.5
