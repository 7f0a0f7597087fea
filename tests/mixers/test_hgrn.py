"""HGRN against its formulas, and the lower bounds that its layers share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.layers.lower_bounds import LowerBounds, bounded_complement, bounded_log_gate
from tests.mixers.layers import assert_layer, build, causal_conv, rms, weights


def hgrn(w: dict[str, Tensor], x: Tensor, bound: Tensor | float, use_short_conv: bool) -> Tensor:
    """The layer as the paper writes it, one token after another."""
    i, f = x @ w["i_proj.weight"].T, x @ w["f_proj.weight"].T
    if use_short_conv:
        i, f = causal_conv(i, w["i_conv.weight"]), causal_conv(f, w["f_conv.weight"])
    forget = bound + (1 - bound) * torch.sigmoid(f)
    h, outputs = torch.zeros_like(i[:, 0]), []
    for t in range(x.shape[1]):
        h = forget[:, t] * h + (1 - forget[:, t]) * F.silu(i[:, t])
        outputs.append(h)
    out = rms(torch.stack(outputs, 1), w["o_norm.weight"], 1e-6)
    return (out * F.silu(x @ w["g_proj.weight"].T)) @ w["o_proj.weight"].T


@pytest.mark.parametrize(
    "options", [{}, {"use_short_conv": True, "expand_ratio": 2}, {"use_lower_bound": False}], ids=str
)
@pytest.mark.parametrize("layer", [0, 2])
def test_layer_equals_its_formulas(options: dict, layer: int) -> None:
    model = build("hgrn", num_hidden_layers=3, mixer={"type": "hgrn", **options}).model
    mixer, x = model.layers[layer].mixer, torch.randn(2, 11, 32)
    bound: Tensor | float = 0.0
    shared = None
    if options.get("use_lower_bound", True):
        shared = model.shared[0]()[layer]
        shares = model.shared[0].logits.detach().double().softmax(0)
        bound = shares[1 : layer + 1].sum(0)
    expected = hgrn(weights(mixer), x.double(), bound, bool(options.get("use_short_conv")))
    assert_layer(mixer, x, expected, shared=shared)


def test_bounds_start_equal_and_grow_with_depth() -> None:
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("hgrn", num_hidden_layers=4)).model
    assert model.shared[0].logits.eq(0).all()
    torch.testing.assert_close(model.shared[0](), torch.tensor([0, 0.25, 0.5, 0.75])[:, None].expand(4, 64))


def test_layers_of_equal_width_share_their_bounds() -> None:
    wide = {"type": "hgrn", "expand_ratio": 2}
    config = hf_arch.tiny_config("mixed", num_hidden_layers=4, mixer=["hgrn", "attention", wide, "hgrn2"])
    shared = AutoModelForCausalLM.from_config(config).model.shared
    assert [tuple(bounds.logits.shape) for bounds in shared] == [(4, 32), (4, 64)]


def test_every_layers_loss_reaches_all_rows() -> None:
    model = build("hgrn", num_hidden_layers=3)
    model(torch.arange(1, 9)[None], labels=torch.arange(1, 9)[None]).loss.backward()
    assert model.model.shared[0].logits.grad.abs().amin(1).gt(0).all()


def test_gates_are_exact_at_their_limits() -> None:
    logits = torch.tensor([-200.0, -20.0, 0.0, 20.0, 200.0])
    for bound in (None, torch.tensor(0.0), torch.tensor(1e-9), torch.tensor(0.9)):
        logits.requires_grad_()
        log_gate, complement = bounded_log_gate(logits, bound), bounded_complement(logits, bound)
        exact = torch.sigmoid(logits.detach().double())
        exact = exact if bound is None else bound.double() + (1 - bound.double()) * exact
        torch.testing.assert_close(log_gate.exp().double(), exact, rtol=1e-5, atol=1e-30)
        torch.testing.assert_close(complement.double(), 1 - exact, rtol=1e-5, atol=1e-7)
        (gradient,) = torch.autograd.grad(log_gate.sum() + complement.sum(), logits)
        assert gradient.isfinite().all()


def test_bounds_stay_in_fp32_under_autocast() -> None:
    bounds = LowerBounds(3, 5)
    bounds.init_weights()
    with torch.autocast("cpu", torch.bfloat16):
        assert bounds().dtype == torch.float32


def test_expand_ratio_must_leave_a_channel() -> None:
    with pytest.raises(ConfigError, match="expand_ratio 0 is not allowed"):
        hf_arch.tiny_config("hgrn", mixer={"type": "hgrn", "expand_ratio": 0})


@pytest.mark.parametrize("name", ["hgrn", "hgrn2"])
def test_bounds_that_no_layer_reads_are_not_there(name: str) -> None:
    """The bound of layer 0 is 0: parameters for it alone would get no gradient, which DDP refuses."""
    for mixers, there in (([name, "gla", "gla"], False), (["gla", name, "gla"], True), ([name], True)):
        model = AutoModelForCausalLM.from_config(
            hf_arch.tiny_config("mixed", num_hidden_layers=len(mixers), mixer=mixers)
        )
        assert any("shared" in key for key, _ in model.named_parameters()) == there
