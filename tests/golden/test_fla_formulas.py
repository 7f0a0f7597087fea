"""Converted models of flash-linear-attention's later families, with options that no file of numbers here has, against
the formulas in fp64: logits, gradients, padding, packed documents, decoding, and both directions of the conversion."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, DynamicCache

import hf_arch
from hf_arch.interchange.base import FOREIGN, _convert_config
from tests.golden.fla_models import logits

BODY = {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 40, "vocab_size": 61}
HEADS = {"num_heads": 2, "head_dim": 6}
CASES: dict[str, list[dict[str, Any]]] = {
    "gated_deltanet": [
        {"use_short_conv": False, "num_v_heads": 6, "use_gate": False, "attnres_block_size": 2},
        {"allow_neg_eigval": True, "expand_v": 0.5, "conv_size": 3, "tie_word_embeddings": True, "norm_eps": 1e-4},
    ],
    "gla": [
        {"num_heads": 4, "num_kv_heads": 2, "use_short_conv": True, "expand_k": 1.0, "clamp_min": -0.05},
        {"num_heads": 2, "use_output_gate": False, "feature_map": "relu", "expand_v": 2.0, "norm_eps": 1e-3},
        {"num_heads": 2, "elementwise_affine": False, "fuse_norm": False, "tie_word_embeddings": True},
    ],
    "retnet": [
        {"num_heads": 4, "num_kv_heads": 2, "feature_map": "relu", "attnres_block_size": 1},
        {"num_heads": 2, "use_output_gate": False, "expand_v": 1.0, "elementwise_affine": False},
    ],
    "delta_net": [
        {"num_heads": 2, "use_short_conv": False, "allow_neg_eigval": True, "expand_k": 0.5, "expand_v": 2.0},
        {"num_heads": 3, "use_gate": True, "qk_activation": "elu", "qk_norm": "sum", "conv_size": 2},
        {"num_heads": 2, "use_beta": False, "qk_activation": "relu", "norm_eps": 1e-3},
    ],
    "hgrn": [
        {"use_lower_bound": False, "expand_ratio": 2, "num_hidden_layers": 3},
        {"use_short_conv": True, "conv_size": 3, "num_hidden_layers": 3, "elementwise_affine": False},
    ],
    "abc": [
        {"num_heads": 2, "num_slots": 5, "use_rope": False, "expand_k": 1.0, "clamp_min": -1, "clamp_max": 1},
        {"num_heads": 2, "num_slots": 7, "elementwise_affine": False, "use_short_conv": True, "expand_v": 0.5},
    ],
    "kda": [
        {"use_short_conv": False, "expand_v": 2.0, "num_v_heads": 6},
        {"safe_gate": True, "lower_bound": -5.0, "conv_size": 3, "tie_word_embeddings": True},
        {"lower_bound": -0.5, "num_v_heads": 4, "use_short_conv": False, "norm_eps": 1e-3, "attnres_block_size": 2},
        {"attn": {"layers": [1], "num_heads": 4, "num_kv_heads": 2, "qkv_bias": True, "window_size": 5}},
    ],
    "gated_deltaproduct": [
        {},
        {"num_householder": 3, "use_forget_gate": True, "use_output_gate": False, "use_short_conv": False},
        {"num_householder": 4, "allow_neg_eigval": True, "expand_v": 0.5, "conv_size": 2, "attnres_block_size": 1},
    ],
    "comba": [
        {"use_short_conv": False, "num_v_heads": 6, "expand_v": 1.5},
        {"use_inner_decay": False, "use_output_correction": False, "correction_factor": 0.3, "conv_size": 2},
        {"attn": [{"layers": [0], "num_heads": 3}], "use_output_gate": False, "norm_eps": 1e-4},
    ],
    "gdn2": [
        {"use_short_conv": False, "num_v_heads": 6, "expand_v": 2.0},
        {"allow_neg_eigval": True, "conv_size": 3, "tie_word_embeddings": True, "norm_eps": 1e-4},
    ],
    "momentum_deltanet": [
        {"use_gate": False, "qk_activation": "relu", "allow_neg_eigval": True, "min_log_mu": -0.5},
        {"use_short_conv": False, "qk_activation": "identity", "tau_factor": 4, "num_v_heads": 6},
        {"qk_norm": "sum", "qk_activation": "elu", "use_p_times_alpha": False, "conv_size": 3, "norm_eps": 1e-4},
        {"use_output_correction": False, "use_short_conv": False, "expand_v": 0.5, "min_log_mu": None},
    ],
    "precond_gated_deltanet": [
        {"use_short_conv": False, "num_v_heads": 4, "expand_v": 0.5, "squash_eps": 1e-3},
        {"use_gate": False, "allow_neg_eigval": True, "squash_x": 3.0, "conv_size": 2, "log_atk_scale_init": 0.5},
    ],
    "precond_kda": [
        {"num_v_heads": 4, "expand_v": 2.0},
        {"num_v_heads": 6, "use_short_conv": False, "lower_bound": -3.0, "allow_neg_eigval": True, "squash_x": 1.1},
    ],
    "mesa_net": [
        {"use_output_gate": True, "conv_size": 3, "lambda_lower_bound": 1.0, "norm_eps": 1e-4},
        {"use_short_conv": False, "num_heads": 4, "tie_word_embeddings": True},
        {"attn": {"layers": [0], "num_heads": 2, "rope_theta": 500.0}},
    ],
    "lightnet": [
        {"num_heads": 4, "expand_ratio": 6, "elementwise_affine": False, "gate_low_rank_dim": 5},
        {"num_heads": None, "expand_ratio": 12, "use_short_conv": True, "conv_size": 3, "norm_eps": 1e-2},
        {"num_heads": 3, "expand_ratio": None, "gate_low_rank_dim": 7, "attnres_block_size": 2},
    ],
    "transformer": [{"num_heads": 4, "num_kv_heads": 2, "qk_norm": True, "qkv_bias": True, "attnres_block_size": 4}],
    "forgetting_transformer": [
        {"num_heads": 6, "num_kv_heads": 3, "window_size": 4, "use_output_gate": True},
        {"num_heads": 4, "num_kv_heads": 1, "qk_norm": True, "qkv_bias": True, "tie_word_embeddings": True},
    ],
    "path_attn": [
        {"num_heads": 4, "num_kv_heads": 2, "use_w_shortconv": False, "use_forget_gate": True},
        {"num_heads": 3, "use_low_rank_w": False, "use_w_shortconv": False, "norm_eps": 1e-3},
        {"num_heads": 4, "num_kv_heads": 1, "attnres_block_size": 1},
    ],
    "stickbreaking_attn": [
        {"num_heads": 4, "num_kv_heads": 1, "qkv_bias": True, "norm_eps": 1e-3},
        {"num_heads": 6, "num_kv_heads": 2, "attend_current": True, "qk_norm": True, "norm_eps": 1e-2},
    ],
    "nsa": [
        {"num_heads": 32, "num_kv_heads": 2, "head_dim": 4, "block_size": 5, "block_counts": 4, "window_size": 3},
        {"num_heads": 16, "num_kv_heads": 1, "head_dim": 2, "block_size": 2, "block_counts": 4, "rope_theta": 100.0},
        {"num_heads": 16, "num_kv_heads": 1, "head_dim": 6, "block_size": 3, "block_counts": 8, "qkv_bias": True},
    ],
    "moba": [
        {"num_heads": 4, "num_kv_heads": 2, "moba_chunk_size": 3, "moba_topk": 3, "qkv_bias": True},
        {"num_heads": 4, "num_kv_heads": 1, "moba_chunk_size": 2, "moba_topk": 6, "use_output_gate": True},
        {"num_heads": 2, "moba_chunk_size": 4, "moba_topk": 2, "qk_norm": True, "window_size": 3, "rope_theta": 50.0},
    ],
    "mamba3": [
        {"head_dim": 8, "state_size": 8, "n_groups": 3, "rope_fraction": 1.0, "expand": 1},
        {"head_dim": 6, "state_size": 12, "is_outproj_norm": True, "A_floor": 0.9, "use_bias": True, "norm_eps": 1e-3},
        {"head_dim": 12, "state_size": 8, "is_mimo": True, "mimo_rank": 3, "n_groups": 2, "rope_fraction": 1.0},
        {"head_dim": 12, "state_size": 8, "is_mimo": True, "mimo_rank": 4, "is_outproj_norm": True, "use_bias": True},
    ],
    "log_linear_mamba2": [
        {"head_dim": 8, "state_size": 5, "n_groups": 2, "use_bias": True, "use_conv_bias": False},
        {"head_dim": 12, "state_size": 6, "norm_before_gate": True, "conv_kernel": 3, "D_has_hdim": True},
        {"head_dim": 6, "state_size": 4, "dt_limit": [0.05, 0.4], "attnres_block_size": 2, "tie_word_embeddings": True},
    ],
    "rodimus": [
        {"block_type": "rodimus", "expand_ratio": 5, "use_short_conv": False, "k_norm_eps": 1e-2},
        {"block_type": "rodimus", "expand_ratio": 6, "attn": {"layers": [1], "num_heads": 4}, "norm_eps": 1e-3},
        {"expand_ratio": 4, "input_gate_low_rank": 3, "ska_attn": {"num_heads": 3, "qkv_bias": True}, "conv_size": 2},
        {"expand_ratio": 4, "ska_attn": {"num_heads": 2, "window_size": 4}, "tie_word_embeddings": False},
    ],
    "yoco": [
        {
            "num_hidden_layers": 4,
            "num_self_decoder_layers": 2,
            "self_decoder_attn": {"type": "swa", "num_heads": 4, "num_v_heads": 2, "window_size": 5, "qkv_bias": True},
            "cross_decoder_attn": {"num_heads": 4, "num_kv_heads": 2, "qkv_bias": True, "rope_inv_freq": "yoco"},
        },
        {
            "num_hidden_layers": 3,
            "num_self_decoder_layers": 1,
            "self_decoder_attn": {
                "type": "gated_deltanet",
                "num_heads": 2,
                "num_v_heads": 4,
                "head_dim": 6,
                "expand_v": 1.5,
                "use_gate": False,
                "use_short_conv": False,
                "allow_neg_eigval": True,
            },
            "cross_decoder_attn": {"num_heads": 3, "num_kv_heads": 1, "qk_norm": True, "rope_theta": 99.0},
            "attnres_block_size": 2,
        },
        {
            "num_hidden_layers": 2,
            "num_self_decoder_layers": 1,
            "self_decoder_attn": {"type": "gated_retention", "num_heads": 3, "gate_logit_normalizer": 4},
            "cross_decoder_attn": {"num_heads": 2},
            "tie_word_embeddings": True,
        },
    ],
}
OWN_HEADS = (
    "gated_deltanet",
    "kda",
    "gated_deltaproduct",
    "comba",
    "gdn2",
    "momentum_deltanet",
    "precond_gated_deltanet",
    "precond_kda",
)


def _config(family: str, options: dict[str, Any]) -> dict[str, Any]:
    heads = HEADS if family in (*OWN_HEADS, "mesa_net") else {}
    body = {name: value for name, value in BODY.items() if family != "mamba3" or name != "intermediate_size"}
    return {"model_type": family, **body, **heads, **options}


@pytest.fixture(
    scope="module", params=[(family, n) for family, each in CASES.items() for n in range(len(each))], ids=str
)
def case(request: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor], Any]:
    """(config, tensors, our model) with every parameter moved away from its initial value."""
    family, number = request.param
    config = _config(family, CASES[family][number])
    torch.manual_seed(zlib.crc32(f"{family} {number}".encode()))
    draft = AutoModelForCausalLM.from_config(_convert_config(FOREIGN.get(family)(), config))
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() < 2 else 0.1))
    state = hf_arch.to_foreign(draft, family)[1]
    return config, state, hf_arch.from_foreign(config, state).eval()


def _ids(length: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(0, BODY["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(length))


def _assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-5 * max(1.0, float(expected.std())))


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 67])
def test_logits(case: Any, length: int) -> None:
    config, state, model = case
    ids = _ids(length, 1)
    _assert_near(model(ids, use_cache=False).logits, logits(config, state, ids))


@pytest.mark.sampled(10)
def test_gradients(case: Any) -> None:
    """Of tokens without a query almost orthogonal to the first key of a row: normed outputs turn the rounding of that
    product into 1e-4 of a gradient in every form (of 19 and of 21 tokens, in torch's 1.2e-4 and 9.9e-5)."""
    config, state, model = case
    ids = _ids(24)
    leaves = {key: tensor.double().requires_grad_() for key, tensor in state.items()}
    expected = logits(config, leaves, ids)
    F.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    model.zero_grad()
    model(ids, labels=ids, use_cache=False).loss.backward()
    ours = {key: p.grad if p.grad is not None else torch.zeros_like(p) for key, p in model.named_parameters()}
    if model.config.tie_word_embeddings:
        ours["lm_head.weight"] = ours["model.embed_tokens.weight"]
    checked = set()
    for rule in FOREIGN.get(config["model_type"])().rules(model.config, config):
        for key, gradient in zip(rule.theirs, rule.to_theirs([ours[key] for key in rule.ours]), strict=True):
            if key in leaves:
                wanted = leaves[key].grad
                wanted = torch.zeros_like(leaves[key]) if wanted is None else wanted
                scale = wanted.abs().max().clamp(min=1e-7)
                torch.testing.assert_close(gradient.double() / scale, wanted / scale, rtol=0, atol=1e-4, msg=key)
                checked.add(key)
    assert checked == set(leaves)


@pytest.mark.sampled(10)
@torch.no_grad()
def test_padded_packed_and_decoded(case: Any) -> None:
    config, state, model = case
    ids = _ids(21)
    whole = logits(config, state, ids)
    cache = DynamicCache(config=model.config)
    pieces = [model(piece, past_key_values=cache).logits for piece in ids.split([11, 4, *[1] * 6], 1)]
    _assert_near(torch.cat(pieces, 1), whole)
    padded = F.pad(ids, (5, 0))
    mask = F.pad(torch.ones_like(ids), (5, 0))
    _assert_near(model(padded, attention_mask=mask, use_cache=False).logits[:, 5:], whole)
    lengths = [6, 1, 14]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    expected = torch.cat([logits(config, state, part) for part in ids[:1].split(lengths, 1)], 1)
    _assert_near(model(ids[:1], position_ids=positions, use_cache=False).logits, expected)


@pytest.mark.sampled(10)
@torch.no_grad()
def test_both_directions(case: Any) -> None:
    config, state, model = case
    again, tensors = hf_arch.to_foreign(model, config["model_type"])
    assert tensors.keys() == state.keys() and all(torch.equal(tensors[key], state[key]) for key in state)
    ids = _ids(9)
    assert torch.equal(hf_arch.from_foreign(again, tensors).eval()(ids).logits, model(ids).logits)
