"""What flash-linear-attention 0.6.0 gets wrong in its later families is right here: a test for each fault found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.interchange.base import FOREIGN
from hf_arch.interchange.reader import ConfigReader
from hf_arch.layers.contract import LayerContext, LayerOutput
from tests.mixers.layers import assert_layer, causal_conv, mixer_and_input, rms, unit, weights
from tests.suite.models import close, perturbed_model, token_ids

PIECES = [9, 1, 1, 6, 1, 1, 2]
LATER = ("forgetting_transformer", "log_linear_mamba2", "mamba3", "mesa_net", "moba", "momentum_delta_net", "nsa")


@torch.no_grad()
def _in_pieces(model: Any, ids: torch.Tensor, pieces: Any = PIECES) -> torch.Tensor:
    cache = DynamicCache(config=model.config)
    return torch.cat([model(part, past_key_values=cache).logits for part in ids.split(pieces, 1)], 1)


@torch.no_grad()
@pytest.mark.parametrize("name", [*LATER, "path_attention", "stickbreaking", "lightnet", "rodimus", "rodimus_plus"])
def test_decoding_is_the_prefill_continued(name: str) -> None:
    """FLA: full attention in MoBA's steps, FoX and PaTH only with a mask, one token a step in Mamba-3, another solver
    in MesaNet's steps, no cache for stick-breaking, and bf16 in parts of Mamba-3 and Rodimus+."""
    model, ids = perturbed_model(name), token_ids(2, 21)
    close(_in_pieces(model, ids), model(ids, use_cache=False).logits, 1e-5)


@torch.no_grad()
def test_a_window_of_fox_is_that_of_prefill_and_steps() -> None:
    """FLA's forward ignores the window, and its cache is cut to it."""
    mixer = {"type": "forgetting_transformer", "window": 5}
    model, ids = perturbed_model("forgetting_transformer", mixer=mixer), token_ids(2, 21)
    whole = model(ids, use_cache=False).logits
    close(_in_pieces(model, ids), whole, 1e-5)
    assert not torch.allclose(whole, perturbed_model("forgetting_transformer")(ids, use_cache=False).logits)


@torch.no_grad()
@pytest.mark.parametrize("name", [*LATER, "path_attention"])
def test_left_padding_moves_nothing(name: str) -> None:
    """FLA: the levels of log-linear Mamba-2 shift, momentum refuses masks, PaTH needs a cache for them."""
    model, ids = perturbed_model(name), token_ids(2, 13)
    padded = torch.cat([torch.zeros(2, 5, dtype=torch.long), ids], 1)
    mask = (torch.arange(18) >= 5).long().expand(2, -1)
    close(model(padded, attention_mask=mask, use_cache=False).logits[:, 5:], model(ids, use_cache=False).logits, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["log_linear_mamba2", "momentum_delta_net", "mamba3"])
def test_packed_documents_are_apart(name: str) -> None:
    """FLA refuses them for the first two."""
    model, ids = perturbed_model(name), token_ids(1, 20)
    positions = torch.cat([torch.arange(8), torch.arange(12)])[None]
    packed = model(ids, position_ids=positions, use_cache=False).logits
    close(packed, torch.cat([model(part, use_cache=False).logits for part in ids.split([8, 12], 1)], 1), 1e-5)


def test_comba_erases_what_the_state_held_before_its_decay() -> None:
    """FLA's naive form decays first, which is another model than its kernels."""
    mixer, x = mixer_and_input("comba", mixer={"type": "comba", "num_heads": 2, "head_dim": 8, "expand_v": 1.0})
    w, u = weights(mixer), x.double()

    def heads(name: str) -> torch.Tensor:
        out = causal_conv(u @ w[f"{name}_proj.weight"].T, w[f"{name}_conv.weight"])
        return torch.nn.functional.silu(out).unflatten(-1, (2, -1))

    q, k, v = heads("q"), heads("k"), heads("v")
    p = k * w["decay"].sigmoid()[:, None]
    q, k, p = unit(q - w["D"][:, None] * p), unit(k), unit(p)
    beta = (u @ w["b_proj.weight"].T).sigmoid()
    g = -w["A_log"].exp() * torch.nn.functional.softplus(u @ w["a_proj.weight"].T + w["dt_bias"])
    state, rows = torch.zeros(2, 2, 8, v.shape[-1], dtype=torch.float64), []
    for t in range(x.shape[1]):
        erased = torch.einsum("bhkv,bhk->bhv", state, p[:, t])
        new = torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t, :, None] * (v[:, t] - erased))
        state = g[:, t, :, None, None].exp() * state + new
        rows.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t] * 8**-0.5))
    out = rms(torch.stack(rows, 1), w["o_norm.weight"], mixer.config.norm_eps)
    gate = (u @ w["g_proj.weight"].T).sigmoid().unflatten(-1, (2, -1))
    assert_layer(mixer, x, (out * gate).flatten(2) @ w["o_proj.weight"].T)


@pytest.mark.parametrize("count", [3, 5])
def test_gradients_of_nsa_are_those_of_its_forward_whatever_the_number_of_blocks(count: int) -> None:
    """FLA rounds a number of blocks that is no power of two up, in the forward and not in all gradients."""
    mixer = {"type": "nsa", "block_size": 2, "block_counts": count, "window": 3}
    layer, x = mixer_and_input("nsa", length=17, mixer=mixer)
    layer, x = layer.double(), x.double()
    length = x.shape[1]
    positions = torch.arange(length)[None]
    generator = torch.Generator().manual_seed(0)
    model = perturbed_model("nsa", mixer=mixer).double()
    rotary = model.model.rotary_embs[0](x, positions)
    context = LayerContext(position_embeddings=rotary, position_ids=positions)
    weights_of_out = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    for name in ("k_proj", "v_proj"):
        weight = getattr(layer, name).weight
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)

        def value() -> torch.Tensor:
            return (LayerOutput.of(layer(x, context=context)).hidden_states * weights_of_out).sum()

        layer.zero_grad()
        value().backward()
        slope, step = float((weight.grad * direction).sum()), 1e-7
        with torch.no_grad():
            weight += step * direction
            above = float(value())
            weight -= 2 * step * direction
            below = float(value())
            weight += step * direction
        assert slope == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-6)


def test_nsa_refuses_a_number_of_blocks_that_leaves_the_choice_to_the_sort() -> None:
    with pytest.raises(ConfigError, match="block_counts 2 is not allowed"):
        hf_arch.tiny_config("nsa", mixer={"type": "nsa", "block_counts": 2})


def _read(model_type: str, **config: Any) -> dict[str, Any]:
    reader = ConfigReader({"model_type": model_type, "hidden_size": 64, "num_hidden_layers": 2, **config})
    return FOREIGN.get(model_type)().config_to_ours(reader)


@pytest.mark.parametrize("residual", [True, False])
def test_rodimus_loads_whatever_the_dtype_of_its_residual(residual: bool) -> None:
    """With its own default FLA's model raises, since a block reads another flag than the model."""
    values = _read("rodimus", vocab_size=97, num_heads=2, residual_in_fp32=residual, block_type="rodimus")
    assert values["architecture"] == "rodimus"


def test_lightnet_keeps_the_epsilon_that_flas_output_norm_has() -> None:
    """FLA ignores `norm_eps` there."""
    values = _read("lightnet", vocab_size=97, norm_eps=1e-2, expand_ratio=8)
    model = perturbed_model("lightnet", mixer=values["mixer"], norm_eps=1e-2)
    assert model.model.layers[0].mixer.o_norm.eps == 1e-6 and model.model.norm.eps == 1e-2


def test_gated_deltaproduct_has_the_defaults_of_the_model_and_not_of_the_layer() -> None:
    """FLA's config says one Householder and no gate, its layer two and one; the model passes no `num_v_heads` on."""
    mixer = _read("gated_deltaproduct", vocab_size=97)["mixer"]
    assert (mixer["num_householder"], mixer["use_forget_gate"]) == (1, False) and "num_v_heads" not in mixer


@pytest.mark.parametrize("name", ["mamba3", "log_linear_mamba2", "stickbreaking"])
def test_it_runs_in_fp32_and_fp64_on_a_cpu(name: str) -> None:
    """FLA refuses CPU tensors, and fp32 for stick-breaking."""
    model, ids = perturbed_model(name), token_ids(1, 9)
    close(model.double()(ids).logits.float(), perturbed_model(name)(ids).logits, 1e-5)
